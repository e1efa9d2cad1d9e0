#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

#include "cpu/attention.h"
#include "cpu/kv_layout.h"
#include "cpu/paged_batch.h"
#include "cpu/rope.h"

namespace py = pybind11;
using py::arg;

namespace airi::bindings {
namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_layout(py::module_& m) {
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

void bind_batch(py::module_& m) {
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
         Address out, int num_q_heads, float scale, int window, float softcap) {
        const py::gil_scoped_release nogil;
        cpu::paged_attention(batch, layout, layer_offset,
                             {.q = at<const void>(q),
                              .out = at<void>(out),
                              .num_q_heads = num_q_heads,
                              .scale = scale,
                              .window = window,
                              .softcap = softcap});
      },
      arg("batch"), arg("layout"), arg("layer_offset"), arg("q"), arg("out"), arg("num_q_heads"),
      arg("scale"), arg("window") = 0, arg("softcap") = 0.0F);
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

}  // namespace

void bind_cpu_attention(py::module_& m) {
  bind_layout(m);
  bind_batch(m);
  bind_attention(m);
}

}  // namespace airi::bindings
