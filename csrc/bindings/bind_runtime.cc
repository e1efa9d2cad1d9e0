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
#include "runtime.h"

namespace py = pybind11;

namespace airi::bindings {
namespace {

std::vector<std::int32_t> to_vector(const char* name, const py::array& a) {
  const auto elements = as_span<std::int32_t>(name, a);
  return {elements.begin(), elements.end()};
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

}  // namespace

void bind_runtime(const py::module_& m) {
  using namespace pybind11::literals;
  bind_model_state(m);
  bind_configs(m);
  m.attr("ROW_SAMPLE") = kRowSample;
  m.attr("ROW_FIRST") = kRowFirst;
  m.attr("ROW_PENDING") = kRowPending;
  m.attr("GRANULE_BYTES") = kGranuleBytes;
  py::class_<PyRuntime> runtime(m, "Runtime", "The scheduling core of one device.");
  bind_models(runtime);
  bind_results(m, runtime);
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
      .def(
          "capacity",
          [](const PyRuntime& self, std::int32_t model) { return self.runtime.capacity(ModelId{model}); },
          "model"_a)
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
