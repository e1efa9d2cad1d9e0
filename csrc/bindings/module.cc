#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace airi::bindings {
void bind_cpu(py::module_& m);
void bind_errors(py::module_& m);
void bind_events(const py::module_& m);
void bind_fair(const py::module_& parts);
void bind_guard(py::module_& m);
void bind_kv(const py::module_& parts);
void bind_route(py::module_& m);
void bind_runtime(const py::module_& m);
void bind_sched(py::module_& parts);
void bind_sim(py::module_& m);
void bind_slabs(py::module_& parts);
void bind_tiers(py::module_& parts);
void bind_slo(py::module_& parts);
}  // namespace airi::bindings

PYBIND11_MODULE(_core, m) {
  m.doc() = "AIRI's C++ core: the scheduling runtime and the CPU kernels.";
  airi::bindings::bind_errors(m);
  airi::bindings::bind_events(m);
  airi::bindings::bind_runtime(m);
  auto parts = m.def_submodule("parts", "Single pieces of the scheduling core.");
  airi::bindings::bind_kv(parts);
  airi::bindings::bind_fair(parts);
  airi::bindings::bind_sched(parts);
  airi::bindings::bind_slabs(parts);
  airi::bindings::bind_tiers(parts);
  airi::bindings::bind_sim(m);
  airi::bindings::bind_slo(parts);
  airi::bindings::bind_guard(m);
  airi::bindings::bind_route(m);
  airi::bindings::bind_cpu(m);
}
