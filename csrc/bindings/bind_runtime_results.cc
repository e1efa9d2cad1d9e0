#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bindings/py_runtime.h"
#include "kv/memory_op.h"
#include "runtime.h"

// What a Runtime answers.

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

}  // namespace

void bind_results(const py::module_& m, py::class_<PyRuntime>& runtime) {
  bind_enums(m);
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
  runtime.def("drain_events", &drain_events);
}

}  // namespace airi::bindings
