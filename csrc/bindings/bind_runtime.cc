#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings/arrays.h"
#include "bindings/convert.h"
#include "bindings/py_runtime.h"
#include "bindings/rings.h"
#include "kv/memory_op.h"
#include "runtime.h"

namespace py = pybind11;

namespace airi::bindings {
namespace {

// One row of drain_events().
struct EventRecord {
  std::int64_t request_id;
  std::int32_t reason;
  std::int32_t model;
  std::int32_t num_prompt_tokens;
  std::int32_t num_cached_tokens;
  std::int32_t num_generated_tokens;
};

std::vector<std::int32_t> to_vector(const char* name, const py::array& a) {
  const auto elements = as_span<std::int32_t>(name, a);
  return {elements.begin(), elements.end()};
}

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
  if (b.ops.ndim() != 2 || b.ops.shape(1) != 5) {
    throw InvalidArgument("ops must have shape [M, 5], got " + detail::shape_of(b.ops));
  }
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

Admit submit(PyRuntime& self, std::int64_t request_id, std::int32_t model, std::int64_t tenant,
             std::int32_t band, const py::array& tokens, std::optional<std::int32_t> max_new_tokens,
             std::int32_t min_new_tokens, const std::optional<py::array>& stop_ids, std::int64_t arrival_us,
             std::optional<std::int64_t> deadline_us,
             const std::vector<std::pair<std::int32_t, py::bytes>>& salts, bool compute_all) {
  RequestSpec spec{.id = RequestId{request_id},
                   .model = ModelId{model},
                   .tenant = TenantId{tenant},
                   .band = band,
                   .tokens = to_vector("tokens", tokens),
                   .max_new_tokens = max_new_tokens,
                   .min_new_tokens = min_new_tokens,
                   .stop_ids = {},
                   .arrival = TimePoint{arrival_us},
                   .deadline = {},
                   .extras = {},
                   .compute_all = compute_all};
  if (stop_ids) spec.stop_ids = to_vector("stop_ids", *stop_ids);
  if (deadline_us) spec.deadline = TimePoint{*deadline_us};
  for (const auto& [offset, salt] : salts) {
    spec.extras.push_back({ExtraKind::kSalt, offset, to_bytes(salt)});
  }
  const py::gil_scoped_release nogil;
  return self.runtime.submit(std::move(spec));
}

std::optional<StepInfo> step(PyRuntime& self, std::int64_t now_us) {
  const py::gil_scoped_release nogil;
  return self.runtime.step(TimePoint{now_us});
}

void commit(PyRuntime& self, std::int64_t step_id, const py::array& tokens, const py::array& counts,
            const py::array& status, std::int64_t device_us) {
  const auto token_span = as_span<std::int32_t>("tokens", tokens);
  const auto count_span = as_span<std::int32_t>("counts", counts);
  const auto status_span = as_span<std::uint8_t>("status", status);
  const py::gil_scoped_release nogil;
  self.runtime.commit(StepId{step_id}, token_span, count_span, status_span, device_us);
}

void complete_transfers(PyRuntime& self, const py::array& ids, const py::array& ok, const py::array& micros) {
  const auto id_span = as_span<std::int64_t>("ids", ids);
  const auto ok_span = as_span<bool>("ok", ok);
  const auto micros_span = as_span<std::int64_t>("micros", micros);
  if (ok_span.size() != id_span.size() || micros_span.size() != id_span.size()) {
    throw InvalidArgument("ids, ok and micros must be of one length, got " + std::to_string(id_span.size()) +
                          ", " + std::to_string(ok_span.size()) + " and " +
                          std::to_string(micros_span.size()));
  }
  std::vector<Inbox::TransferReport> reports;
  for (std::size_t i = 0; i < id_span.size(); ++i) {
    reports.push_back({TransferId{id_span[i]}, ok_span[i], micros_span[i]});
  }
  const py::gil_scoped_release nogil;
  self.runtime.complete_transfers(reports);
}

py::array_t<EventRecord> drain_events(PyRuntime& self) {
  const std::vector<FinishedEvent> events = self.runtime.drain_events();
  py::array_t<EventRecord> records(static_cast<py::ssize_t>(events.size()));
  std::ranges::transform(events, records.mutable_data(), [](const FinishedEvent& e) {
    return EventRecord{.request_id = raw(e.request_id),
                       .reason = raw(e.reason),
                       .model = raw(e.model),
                       .num_prompt_tokens = e.num_prompt_tokens,
                       .num_cached_tokens = e.num_cached_tokens,
                       .num_generated_tokens = e.num_generated_tokens};
  });
  return records;
}

void bind_enums(const py::module_& m) {
  py::native_enum<Admit>(m, "Admit", "enum.IntEnum", "What became of a submitted request.")
      .value("ACCEPTED", Admit::kAccepted)
      .value("QUEUE_FULL", Admit::kQueueFull)
      .value("TOO_LONG", Admit::kTooLong)
      .value("NEVER_FITS", Admit::kNeverFits)
      .value("DUPLICATE_ID", Admit::kDuplicateId)
      .value("MODEL_GONE", Admit::kModelGone)
      .finalize();
  py::native_enum<FinishReason>(m, "FinishReason", "enum.IntEnum", "Why a request ended.")
      .value("STOP", FinishReason::kStop)
      .value("LENGTH", FinishReason::kLength)
      .value("CANCELLED", FinishReason::kCancelled)
      .value("DEADLINE", FinishReason::kDeadline)
      .value("FAILED", FinishReason::kFailed)
      .value("NAN", FinishReason::kNan)
      .value("NEVER_FITS", FinishReason::kNeverFits)
      .finalize();
  py::native_enum<RowStatus>(m, "RowStatus", "enum.IntEnum", "How the runner fared with one row.")
      .value("OK", RowStatus::kOk)
      .value("NAN", RowStatus::kNan)
      .value("FAILED", RowStatus::kFailed)
      .finalize();
  py::native_enum<MemoryOpKind>(m, "MemoryOpKind", "enum.IntEnum",
                                "What a runner does to memory before a step's batch.")
      .value("ZERO", MemoryOpKind::kZero)
      .value("STORE", MemoryOpKind::kStore)
      .value("LOAD", MemoryOpKind::kLoad)
      .value("SPILL", MemoryOpKind::kSpill)
      .value("FETCH", MemoryOpKind::kFetch)
      .finalize();
  py::native_enum<AdmissionPolicy>(m, "Admission", "enum.IntEnum",
                                   "How much memory a request must be promised to run.")
      .value("NO_EVICT", AdmissionPolicy::kNoEvict)
      .value("MAX_UTIL", AdmissionPolicy::kMaxUtil)
      .finalize();
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
                       const std::vector<TargetTuple>& targets, double itl_credit) {
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
                          std::int64_t slab_hysteresis_us, std::int32_t dedupe_steps) {
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

void bind_configs(const py::module_& m) {
  using namespace pybind11::literals;
  py::class_<ModelConfig>(m, "ModelConfig", "One model of a device.")
      .def(py::init(&make_model), py::kw_only(), "block_size"_a, "bytes_per_block"_a, "max_model_len"_a,
           "max_num_seqs"_a, "max_batch_tokens"_a, "num_slabs"_a = std::nullopt, "share"_a = std::nullopt,
           "device_weight"_a = 1.0, "hash_seed"_a = py::bytes(), "admission"_a = AdmissionPolicy::kNoEvict,
           "watermark"_a = 0.01, "enable_prefix_caching"_a = true, "max_prefill_chunk"_a = std::nullopt,
           "min_slabs"_a = std::nullopt, "max_slabs"_a = std::nullopt, "slab_weight"_a = 1.0,
           "weight_slabs"_a = 0, "targets"_a = std::vector<TargetTuple>{}, "itl_credit"_a = 0.0)
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
           "slab_hysteresis_us"_a = 1'000'000, "dedupe_steps"_a = 0);
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

void bind_results(const py::module_& m) {
  PYBIND11_NUMPY_DTYPE(EventRecord, request_id, reason, model, num_prompt_tokens, num_cached_tokens,
                       num_generated_tokens);
  py::class_<StepInfo>(m, "StepInfo", "What step() planned.")
      .def_property_readonly("step_id", [](const StepInfo& s) { return raw(s.step_id); })
      .def_property_readonly("model", [](const StepInfo& s) { return raw(s.model); })
      .def_readonly("buffer", &StepInfo::buffer)
      .def_readonly("num_rows", &StepInfo::num_rows)
      .def_readonly("num_tokens", &StepInfo::num_tokens)
      .def_readonly("num_deltas", &StepInfo::num_deltas)
      .def_readonly("num_ops", &StepInfo::num_ops)
      .def_readonly("num_samples", &StepInfo::num_samples)
      .def_readonly("num_decodes", &StepInfo::num_decodes)
      .def_readonly("num_prefill_tokens", &StepInfo::num_prefill_tokens);
  py::class_<TierStats>(m, "TierStats", "Counters of the copies that one model has beside the device.")
      .def_readonly("host_blocks", &TierStats::host_blocks)
      .def_readonly("disk_blocks", &TierStats::disk_blocks)
      .def_readonly("stores", &TierStats::stores)
      .def_readonly("loads", &TierStats::loads)
      .def_readonly("spills", &TierStats::spills)
      .def_readonly("fetches", &TierStats::fetches)
      .def_readonly("failures", &TierStats::failures)
      .def_readonly("dropped_stores", &TierStats::dropped_stores);
  py::class_<ModelStats> stats(m, "ModelStats", "Counters of one model.");
  stats.def_readonly("waiting", &ModelStats::waiting)
      .def_readonly("running", &ModelStats::running)
      .def_readonly("capacity", &ModelStats::capacity)
      .def_readonly("free_blocks", &ModelStats::free_blocks)
      .def_readonly("cached_blocks", &ModelStats::cached_blocks)
      .def_readonly("active_blocks", &ModelStats::active_blocks)
      .def_readonly("query_tokens", &ModelStats::query_tokens)
      .def_readonly("hit_tokens", &ModelStats::hit_tokens)
      .def_readonly("preemptions", &ModelStats::preemptions)
      .def_readonly("dedupe_holds", &ModelStats::dedupe_holds)
      .def_readonly("evictions", &ModelStats::evictions)
      .def_readonly("swaps", &ModelStats::swaps)
      .def_readonly("tiers", &ModelStats::tiers);
  const auto counter = [&](const char* name, std::int64_t SloCounters::* member) {
    stats.def_property_readonly(name, [=](const ModelStats& s) { return s.slo.*member; });
  };
  counter("first_tokens_on_time", &SloCounters::first_tokens_on_time);
  counter("first_tokens_late", &SloCounters::first_tokens_late);
  counter("next_tokens_on_time", &SloCounters::next_tokens_on_time);
  counter("next_tokens_late", &SloCounters::next_tokens_late);
  counter("requests_on_time", &SloCounters::requests_on_time);
  counter("requests_late", &SloCounters::requests_late);
  counter("best_effort", &SloCounters::best_effort);
  counter("rests", &SloCounters::rests);
}

}  // namespace

void bind_runtime(const py::module_& m) {
  using namespace pybind11::literals;
  bind_model_state(m);
  bind_enums(m);
  bind_configs(m);
  bind_results(m);
  m.attr("ROW_SAMPLE") = kRowSample;
  m.attr("ROW_FIRST") = kRowFirst;
  m.attr("ROW_PENDING") = kRowPending;
  m.attr("GRANULE_BYTES") = kGranuleBytes;
  py::class_<PyRuntime> runtime(m, "Runtime", "The scheduling core of one device.");
  bind_models(runtime);
  runtime
      .def(py::init<const RuntimeConfig&, const std::vector<ModelConfig>&, std::vector<PyStepBuffers>>(),
           "config"_a, "models"_a, "buffers"_a)
      .def(
          "set_tenant",
          [](PyRuntime& self, std::int64_t tenant, double weight) {
            self.runtime.set_tenant(TenantId{tenant}, weight);
          },
          "tenant"_a, "weight"_a)
      .def(
          "set_kv_quota",
          [](PyRuntime& self, std::int64_t tenant, std::int32_t model, std::int32_t blocks) {
            self.runtime.set_kv_quota(TenantId{tenant}, ModelId{model}, blocks);
          },
          "tenant"_a, "model"_a, "blocks"_a)
      .def("submit", &submit, py::kw_only(), "request_id"_a, "model"_a, "tenant"_a = 0, "band"_a = 0,
           "tokens"_a, "max_new_tokens"_a, "min_new_tokens"_a = 0, "stop_ids"_a = std::nullopt,
           "arrival_us"_a, "deadline_us"_a = std::nullopt,
           "salts"_a = std::vector<std::pair<std::int32_t, py::bytes>>{}, "compute_all"_a = false)
      .def(
          "cancel", [](PyRuntime& self, std::int64_t id) { return self.runtime.cancel(RequestId{id}); },
          "request_id"_a)
      .def("step", &step, "now_us"_a)
      .def("commit", &commit, "step_id"_a, "tokens"_a, "counts"_a, "status"_a, "device_us"_a)
      .def("complete_transfers", &complete_transfers, "ids"_a, "ok"_a, "micros"_a)
      .def("drain_events", &drain_events)
      .def(
          "observe_step",
          [](PyRuntime& self, std::int32_t model,
             const std::tuple<std::int64_t, std::int64_t, std::int64_t, double>& work, double micros) {
            const auto& [tokens, seqs, context, pairs] = work;
            self.runtime.step_time(ModelId{model}).observe({tokens, seqs, context, pairs}, micros);
          },
          "model"_a, "work"_a, "micros"_a)
      .def(
          "step_time",
          [](PyRuntime& self, std::int32_t model) -> StepTimeModel& {
            return self.runtime.step_time(ModelId{model});
          },
          "model"_a, py::return_value_policy::reference_internal,
          "How long steps of a model take, as learnt from commits; for the owner thread, between steps.")
      .def("has_work", [](const PyRuntime& self) { return self.runtime.has_work(); })
      .def("stats", [](const PyRuntime& self) { return self.runtime.stats(); })
      .def(
          "tenant_counter",
          [](const PyRuntime& self, std::int32_t model, std::int32_t band, std::int64_t tenant) {
            return self.runtime.tenant_counter(ModelId{model}, band, TenantId{tenant});
          },
          "model"_a, "band"_a, "tenant"_a)
      .def(
          "read_decisions",
          [](const PyRuntime& self, std::uint64_t cursor, std::int64_t limit) {
            return read_ring(self.runtime.decisions(), cursor, limit);
          },
          "cursor"_a, "limit"_a = 4096)
      .def(
          "read_kv_events",
          [](const PyRuntime& self, std::uint64_t cursor, std::int64_t limit) {
            return read_ring(self.runtime.kv_events(), cursor, limit);
          },
          "cursor"_a, "limit"_a = 4096)
      .def(
          "kv_snapshot",
          [](const PyRuntime& self, std::int32_t model) {
            const KvSnapshot snapshot = self.runtime.kv_snapshot(ModelId{model});
            return py::make_tuple(to_array(snapshot.stored), snapshot.cursor);
          },
          "model"_a)
      .def("check_invariants", [](const PyRuntime& self) { self.runtime.check_invariants(); });
}

}  // namespace airi::bindings
