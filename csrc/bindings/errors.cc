#include <pybind11/pybind11.h>

#include "base/check.h"

namespace py = pybind11;

namespace airi::bindings {

// The one table of C++ errors and what Python sees. airi.errors re-exports InternalError.
void bind_errors(py::module_& m) {
  py::register_exception<InvariantError>(m, "InternalError", PyExc_RuntimeError);
  // NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11 fixes the signature.
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const InvalidArgument& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    }
  });
}

}  // namespace airi::bindings
