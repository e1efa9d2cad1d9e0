#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace airi::bindings {
void bind_cpu(py::module_& m);
void bind_errors(py::module_& m);
void bind_runtime(py::module_& m);
}  // namespace airi::bindings

PYBIND11_MODULE(_core, m) {
  m.doc() = "AIRI's C++ core: the scheduling runtime and the CPU kernels.";
  airi::bindings::bind_errors(m);
  airi::bindings::bind_runtime(m);
  airi::bindings::bind_cpu(m);
}
