#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/py_runtime.h"
#include "model_lifecycle.h"

// Models that come, sleep, wake and go.

namespace py = pybind11;

namespace airi::bindings {

void bind_model_state(const py::module_& m) {
  py::native_enum<ModelState>(m, "ModelState", "enum.IntEnum", "Where a model stands.")
      .value("AWAKE", ModelState::kAwake)
      .value("DRAINING", ModelState::kDraining)
      .value("MOVING_OUT", ModelState::kMovingOut)
      .value("ASLEEP", ModelState::kAsleep)
      .value("RECLAIMING", ModelState::kReclaiming)
      .value("MOVING_IN", ModelState::kMovingIn)
      .value("REMOVING", ModelState::kRemoving)
      .value("REMOVED", ModelState::kRemoved)
      .finalize();
}

void bind_models(py::class_<PyRuntime>& runtime) {
  using namespace pybind11::literals;
  runtime
      .def(
          "add_model",
          [](PyRuntime& self, const ModelConfig& model) { return raw(self.runtime.add_model(model)); },
          "model"_a)
      .def(
          "remove_model",
          [](PyRuntime& self, std::int32_t model, bool drains) {
            self.runtime.remove_model(ModelId{model}, drains);
          },
          "model"_a, py::kw_only(), "drains"_a = false)
      .def(
          "sleep", [](PyRuntime& self, std::int32_t model) { self.runtime.sleep(ModelId{model}); }, "model"_a)
      .def(
          "wake", [](PyRuntime& self, std::int32_t model) { self.runtime.wake(ModelId{model}); }, "model"_a)
      .def(
          "confirm_moved",
          [](PyRuntime& self, std::int32_t model) { self.runtime.confirm_moved(ModelId{model}); }, "model"_a)
      .def(
          "state",
          [](const PyRuntime& self, std::int32_t model) { return self.runtime.state(ModelId{model}); },
          "model"_a)
      .def(
          "weights_at",
          [](const PyRuntime& self, std::int32_t model) -> std::optional<std::int32_t> {
            const auto slab = self.runtime.weights_at(ModelId{model});
            return slab ? std::optional(raw(*slab)) : std::nullopt;
          },
          "model"_a)
      .def(
          "replace_buffers",
          [](PyRuntime& self, std::vector<PyStepBuffers> sets) {
            self.runtime.replace_buffers(PyRuntime::spans_of(sets));
            self.buffers = std::move(sets);
          },
          "buffers"_a);
}

}  // namespace airi::bindings
