#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace airi::bindings {

void bind_cpu_attention(py::module_& /*m*/) {}

}  // namespace airi::bindings
