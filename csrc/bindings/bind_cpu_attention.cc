#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/check.h"
#include "cpu/attention.h"
#include "cpu/kv_layout.h"
#include "cpu/logits.h"
#include "cpu/paged_batch.h"
#include "cpu/rope.h"
#include "cpu/sample.h"

namespace py = pybind11;
using py::arg;

namespace airi::bindings {
namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): addresses cross as integers
}

void bind_layout(const py::module_& m) {
  using cpu::KvLayout;
  py::class_<KvLayout>(m, "KvLayout", "Where one model's keys and values lie in the arena; strides in bytes.")
      .def(py::init([](Address base, int block_size, int num_kv_heads, int head_dim, cpu::DType dtype,
                       std::int64_t head_stride, std::int64_t kv_stride, std::int64_t token_stride) {
             const KvLayout layout{.base = at<std::byte>(base),
                                   .block_size = block_size,
                                   .num_kv_heads = num_kv_heads,
                                   .head_dim = head_dim,
                                   .dtype = dtype,
                                   .head_stride = head_stride,
                                   .kv_stride = kv_stride,
                                   .token_stride = token_stride};
             layout.check();
             return layout;
           }),
           py::kw_only(), arg("base"), arg("block_size"), arg("num_kv_heads"), arg("head_dim"), arg("dtype"),
           arg("head_stride"), arg("kv_stride"), arg("token_stride"))
      .def_readonly("block_size", &KvLayout::block_size)
      .def_readonly("num_kv_heads", &KvLayout::num_kv_heads)
      .def_readonly("head_dim", &KvLayout::head_dim)
      .def_readonly("dtype", &KvLayout::dtype);
}

void bind_batch(const py::module_& m) {
  using cpu::PagedBatch;
  py::class_<PagedBatch>(m, "PagedBatch", "The rows of one step; the arrays must outlive the step's calls.")
      .def(py::init([](int rows, int tokens, Address query_start, Address seq_lens, Address slots,
                       Address block_table, std::int64_t table_stride) {
             return std::make_unique<PagedBatch>(
                 cpu::PagedBatchArrays{.rows = rows,
                                       .tokens = tokens,
                                       .query_start = at<const std::int32_t>(query_start),
                                       .seq_lens = at<const std::int32_t>(seq_lens),
                                       .slots = at<const std::int32_t>(slots),
                                       .block_table = at<const std::int32_t>(block_table),
                                       .table_stride = table_stride});
           }),
           py::kw_only(), arg("rows"), arg("tokens"), arg("query_start"), arg("seq_lens"), arg("slots"),
           arg("block_table"), arg("table_stride"))
      .def_property_readonly("rows", &PagedBatch::rows)
      .def_property_readonly("tokens", &PagedBatch::tokens);
}

void bind_attention(py::module_& m) {
  m.def(
      "paged_attention",
      [](cpu::PagedBatch& batch, const cpu::KvLayout& layout, std::int64_t layer_offset, Address q,
         Address out, int num_q_heads, float scale, int window, float softcap, bool is_causal) {
        const py::gil_scoped_release nogil;
        cpu::paged_attention(batch, layout, layer_offset,
                             {.q = at<const void>(q),
                              .out = at<void>(out),
                              .num_q_heads = num_q_heads,
                              .scale = scale,
                              .window = window,
                              .softcap = softcap,
                              .is_causal = is_causal});
      },
      arg("batch"), arg("layout"), arg("layer_offset"), arg("q"), arg("out"), arg("num_q_heads"),
      arg("scale"), arg("window") = 0, arg("softcap") = 0.0F, arg("is_causal") = true);
  m.def(
      "rope_kv_write",
      [](const cpu::PagedBatch& batch, const cpu::KvLayout& layout, std::int64_t layer_offset, Address qkv,
         Address positions, Address cos_sin, int rot_dim, Address q_out, int num_q_heads, Address q_norm,
         Address k_norm, float eps) {
        const py::gil_scoped_release nogil;
        cpu::rope_kv_write(batch, layout, layer_offset,
                           {.qkv = at<const float>(qkv),
                            .positions = at<const std::int32_t>(positions),
                            .cos_sin = at<const float>(cos_sin),
                            .rot_dim = rot_dim,
                            .q_out = at<void>(q_out),
                            .num_q_heads = num_q_heads,
                            .q_norm = at<const float>(q_norm),
                            .k_norm = at<const float>(k_norm),
                            .eps = eps});
      },
      arg("batch"), arg("layout"), arg("layer_offset"), arg("qkv"), arg("positions"), arg("cos_sin"),
      arg("rot_dim"), arg("q_out"), arg("num_q_heads"), arg("q_norm") = 0, arg("k_norm") = 0,
      arg("eps") = 1e-6F);
}

void bind_sample(py::module_& m) {
  m.def(
      "sample",
      [](Address logits, int rows, int vocab, Address temperature, Address top_k, Address top_p,
         Address min_p, Address seed, Address draw, Address out_tokens, Address nan_flags,
         std::int64_t stride) {
        const py::gil_scoped_release nogil;
        cpu::sample({.data = at<const float>(logits),
                     .rows = rows,
                     .vocab = vocab,
                     .stride = stride ? stride : vocab},
                    {.temperature = at<const float>(temperature),
                     .top_k = at<const std::int32_t>(top_k),
                     .top_p = at<const float>(top_p),
                     .min_p = at<const float>(min_p),
                     .seed = at<const std::uint64_t>(seed),
                     .draw = at<const std::int32_t>(draw),
                     .out_tokens = at<std::int32_t>(out_tokens),
                     .nan_flags = at<std::uint8_t>(nan_flags)});
      },
      arg("logits"), arg("rows"), arg("vocab"), arg("temperature"), arg("top_k"), arg("top_p"), arg("min_p"),
      arg("seed"), arg("draw"), arg("out_tokens"), arg("nan_flags"), arg("stride") = 0);
  m.def(
      "log_softmax_gather",
      [](Address logits, int rows, int vocab, Address tokens, Address logprobs, Address ranks, int top,
         Address top_ids, Address top_logprobs, std::int64_t stride) {
        const py::gil_scoped_release nogil;
        cpu::log_softmax_gather({.data = at<const float>(logits),
                                 .rows = rows,
                                 .vocab = vocab,
                                 .stride = stride ? stride : vocab},
                                {.tokens = at<const std::int32_t>(tokens),
                                 .top = top,
                                 .logprobs = at<float>(logprobs),
                                 .ranks = at<std::int32_t>(ranks),
                                 .top_ids = at<std::int32_t>(top_ids),
                                 .top_logprobs = at<float>(top_logprobs)});
      },
      arg("logits"), arg("rows"), arg("vocab"), arg("tokens"), arg("logprobs"), arg("ranks"), arg("top") = 0,
      arg("top_ids") = 0, arg("top_logprobs") = 0, arg("stride") = 0);
}

// An array that crosses as address and length.
template <class T>
std::span<T> span_at(Address address, std::int64_t count, const char* name) {
  if (count < 0 || (count > 0 && address == 0)) {
    throw InvalidArgument(std::string(name) + ": needs an address and a length of 0 or more");
  }
  return {at<T>(address), static_cast<std::size_t>(count)};
}

void bind_logits(py::module_& m) {
  m.def(
      "apply_penalties",
      [](Address row, std::int64_t vocab, Address prompt_ids, std::int64_t num_prompt, Address output_ids,
         std::int64_t num_output, float repetition, float presence, float frequency) {
        const py::gil_scoped_release nogil;
        cpu::apply_penalties(span_at<float>(row, vocab, "row"),
                             span_at<const std::int32_t>(prompt_ids, num_prompt, "prompt_ids"),
                             span_at<const std::int32_t>(output_ids, num_output, "output_ids"),
                             {.repetition = repetition, .presence = presence, .frequency = frequency});
      },
      arg("row"), arg("vocab"), arg("prompt_ids"), arg("num_prompt"), arg("output_ids"), arg("num_output"),
      arg("repetition") = 1.0F, arg("presence") = 0.0F, arg("frequency") = 0.0F);
  m.def(
      "apply_bias",
      [](Address row, std::int64_t vocab, Address ids, Address values, std::int64_t count) {
        const py::gil_scoped_release nogil;
        cpu::apply_bias(span_at<float>(row, vocab, "row"), span_at<const std::int32_t>(ids, count, "ids"),
                        span_at<const float>(values, count, "values"));
      },
      arg("row"), arg("vocab"), arg("ids"), arg("values"), arg("count"));
  m.def(
      "apply_token_mask",
      [](Address row, std::int64_t vocab, Address mask, std::int64_t words) {
        const py::gil_scoped_release nogil;
        cpu::apply_token_mask(span_at<float>(row, vocab, "row"),
                              span_at<const std::uint32_t>(mask, words, "mask"));
      },
      arg("row"), arg("vocab"), arg("mask"), arg("words"));
}

}  // namespace

void bind_cpu_attention(py::module_& m) {
  bind_layout(m);
  bind_batch(m);
  bind_attention(m);
  bind_sample(m);
  bind_logits(m);
}

}  // namespace airi::bindings
