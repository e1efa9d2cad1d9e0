#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings/arrays.h"
#include "bindings/convert.h"
#include "bindings/py_runtime.h"
#include "runtime_config.h"

// What a Runtime is built from.

namespace py = pybind11;

namespace airi::bindings {
namespace {

PyStepBuffers make_buffers(py::array request_ids, py::array slots, py::array query_start, py::array seq_lens,
                           py::array row_flags, py::array draw_index, py::array tokens, py::array positions,
                           py::array deltas, std::optional<py::array> ops) {
  py::array memory_ops = ops ? std::move(*ops) : py::array_t<std::int64_t>(std::vector<py::ssize_t>{0, 5});
  PyStepBuffers b{std::move(request_ids),
                  std::move(slots),
                  std::move(query_start),
                  std::move(seq_lens),
                  std::move(row_flags),
                  std::move(draw_index),
                  std::move(tokens),
                  std::move(positions),
                  std::move(deltas),
                  std::move(memory_ops),
                  {}};
  if (b.deltas.ndim() != 2 || b.deltas.shape(1) != 3) {
    throw InvalidArgument("deltas must have shape [D, 3], got " + detail::shape_of(b.deltas));
  }
  if (b.ops.ndim() != 2 || b.ops.shape(1) != 5) {
    throw InvalidArgument("ops must have shape [M, 5], got " + detail::shape_of(b.ops));
  }
  b.spans = {.request_ids = as_writable_span<std::int64_t>("request_ids", b.request_ids),
             .slots = as_writable_span<std::int32_t>("slots", b.slots),
             .query_start = as_writable_span<std::int32_t>("query_start", b.query_start),
             .seq_lens = as_writable_span<std::int32_t>("seq_lens", b.seq_lens),
             .row_flags = as_writable_span<std::uint8_t>("row_flags", b.row_flags),
             .draw_index = as_writable_span<std::int32_t>("draw_index", b.draw_index),
             .tokens = as_writable_span<std::int32_t>("tokens", b.tokens),
             .positions = as_writable_span<std::int32_t>("positions", b.positions),
             .deltas = as_writable_span<std::int32_t>("deltas", b.deltas),
             .ops = as_writable_span<std::int64_t>("ops", b.ops)};
  return b;
}

// (ttft_us, itl_us)
using TargetTuple = std::pair<std::optional<std::int64_t>, std::optional<std::int64_t>>;

ModelConfig make_model(std::int32_t block_size, std::int64_t bytes_per_block, std::int32_t max_model_len,
                       std::int32_t max_num_seqs, std::int32_t max_batch_tokens,
                       std::optional<std::int32_t> num_slabs, std::optional<double> share,
                       double device_weight, const py::bytes& hash_seed, AdmissionPolicy admission,
                       double watermark, bool enable_prefix_caching,
                       std::optional<std::int32_t> max_prefill_chunk, std::optional<std::int32_t> min_slabs,
                       std::optional<std::int32_t> max_slabs, double slab_weight, std::int32_t weight_slabs,
                       const std::vector<TargetTuple>& targets, double itl_credit, bool whole_prompts) {
  ModelConfig model{.block_size = block_size,
                    .bytes_per_block = bytes_per_block,
                    .max_model_len = max_model_len,
                    .max_num_seqs = max_num_seqs,
                    .max_batch_tokens = max_batch_tokens,
                    .num_slabs = num_slabs,
                    .share = share,
                    .min_slabs = min_slabs,
                    .max_slabs = max_slabs,
                    .slab_weight = slab_weight,
                    .weight_slabs = weight_slabs,
                    .device_weight = device_weight,
                    .hash_seed = to_bytes(hash_seed),
                    .admission = admission,
                    .watermark = watermark,
                    .enable_prefix_caching = enable_prefix_caching,
                    .max_prefill_chunk = max_prefill_chunk,
                    .whole_prompts = whole_prompts,
                    .targets = {},
                    .itl_credit = itl_credit};
  for (const auto& [ttft, itl] : targets) model.targets.push_back({.ttft = ttft, .itl = itl});
  check_config(model);
  return model;
}

RuntimeConfig make_config(std::int64_t arena_bytes, std::int64_t slab_bytes, const py::bytes& hash_key,
                          std::int64_t max_queued, std::int32_t num_bands,
                          std::optional<std::int64_t> aging_us, std::int32_t w_prompt, std::int32_t w_decode,
                          std::int32_t w_hit, std::int64_t bypass_tokens, std::int32_t max_preemptions,
                          std::int64_t quantum_us, std::int64_t min_residency_us,
                          std::optional<std::int64_t> fairness_gap_tokens, std::int64_t host_bytes,
                          std::int64_t disk_bytes, std::int32_t store_on_reuse, std::int64_t load_timeout_us,
                          double host_bytes_per_us, double disk_bytes_per_us, std::int32_t steps_ahead,
                          std::int64_t decision_records, std::int64_t kv_event_records,
                          std::optional<std::int64_t> locality_quantum_tokens,
                          std::int64_t slab_hysteresis_us, std::int32_t dedupe_steps,
                          std::int64_t max_borrow_us) {
  RuntimeConfig config{.arena_bytes = arena_bytes,
                       .slab_bytes = slab_bytes,
                       .hash_key = to_key(hash_key),
                       .max_queued = max_queued,
                       .num_bands = num_bands,
                       .aging_us = aging_us,
                       .service = {.prompt = w_prompt, .decode = w_decode, .hit = w_hit},
                       .bypass_tokens = bypass_tokens,
                       .fairness_gap_tokens = fairness_gap_tokens,
                       .locality_quantum_tokens = locality_quantum_tokens,
                       .dedupe_steps = dedupe_steps,
                       .max_preemptions = max_preemptions,
                       .steps_ahead = steps_ahead,
                       .decision_records = decision_records,
                       .kv_event_records = kv_event_records,
                       .quantum_us = quantum_us,
                       .min_residency_us = min_residency_us,
                       .max_borrow_us = max_borrow_us,
                       .slab_hysteresis_us = slab_hysteresis_us,
                       .tiers = {.host_bytes = host_bytes,
                                 .disk_bytes = disk_bytes,
                                 .store_on_reuse = store_on_reuse,
                                 .load_timeout_us = load_timeout_us,
                                 .host_bytes_per_us = host_bytes_per_us,
                                 .disk_bytes_per_us = disk_bytes_per_us}};
  check_config(config);
  return config;
}

}  // namespace

void bind_configs(const py::module_& m) {
  using namespace pybind11::literals;
  py::native_enum<AdmissionPolicy>(m, "Admission", "enum.IntEnum",
                                   "How much memory a request must be promised to run.")
      .value("NO_EVICT", AdmissionPolicy::kNoEvict)
      .value("MAX_UTIL", AdmissionPolicy::kMaxUtil)
      .finalize();
  py::class_<ModelConfig>(m, "ModelConfig", "One model of a device.")
      .def(py::init(&make_model), py::kw_only(), "block_size"_a, "bytes_per_block"_a, "max_model_len"_a,
           "max_num_seqs"_a, "max_batch_tokens"_a, "num_slabs"_a = std::nullopt, "share"_a = std::nullopt,
           "device_weight"_a = 1.0, "hash_seed"_a = py::bytes(), "admission"_a = AdmissionPolicy::kNoEvict,
           "watermark"_a = 0.01, "enable_prefix_caching"_a = true, "max_prefill_chunk"_a = std::nullopt,
           "min_slabs"_a = std::nullopt, "max_slabs"_a = std::nullopt, "slab_weight"_a = 1.0,
           "weight_slabs"_a = 0, "targets"_a = std::vector<TargetTuple>{}, "itl_credit"_a = 0.0,
           "whole_prompts"_a = false)
      .def_property_readonly("max_deltas", &ModelConfig::max_deltas,
                             "How many rows StepBuffers.deltas must have at least.");
  py::class_<RuntimeConfig>(m, "RuntimeConfig", "What all models of a device share.")
      .def(py::init(&make_config), py::kw_only(), "arena_bytes"_a, "slab_bytes"_a, "hash_key"_a,
           "max_queued"_a = 4096, "num_bands"_a = 1, "aging_us"_a = std::nullopt, "w_prompt"_a = 1,
           "w_decode"_a = 2, "w_hit"_a = 0, "bypass_tokens"_a = 0, "max_preemptions"_a = 3,
           "quantum_us"_a = 10'000, "min_residency_us"_a = 0, "fairness_gap_tokens"_a = std::nullopt,
           "host_bytes"_a = 0, "disk_bytes"_a = 0, "store_on_reuse"_a = 2, "load_timeout_us"_a = 1'000'000,
           "host_bytes_per_us"_a = 8'000.0, "disk_bytes_per_us"_a = 1'000.0, "steps_ahead"_a = 0,
           "decision_records"_a = 0, "kv_event_records"_a = 0, "locality_quantum_tokens"_a = std::nullopt,
           "slab_hysteresis_us"_a = 1'000'000, "dedupe_steps"_a = 0, "max_borrow_us"_a = 0);
  py::class_<PyStepBuffers>(m, "StepBuffers", "One set of arrays that steps are written into.")
      .def(py::init(&make_buffers), py::kw_only(), "request_ids"_a, "slots"_a, "query_start"_a, "seq_lens"_a,
           "row_flags"_a, "draw_index"_a, "tokens"_a, "positions"_a, "deltas"_a, "ops"_a = std::nullopt)
      .def_readonly("request_ids", &PyStepBuffers::request_ids)
      .def_readonly("slots", &PyStepBuffers::slots)
      .def_readonly("query_start", &PyStepBuffers::query_start)
      .def_readonly("seq_lens", &PyStepBuffers::seq_lens)
      .def_readonly("row_flags", &PyStepBuffers::row_flags)
      .def_readonly("draw_index", &PyStepBuffers::draw_index)
      .def_readonly("tokens", &PyStepBuffers::tokens)
      .def_readonly("positions", &PyStepBuffers::positions)
      .def_readonly("deltas", &PyStepBuffers::deltas)
      .def_readonly("ops", &PyStepBuffers::ops);
}

}  // namespace airi::bindings
