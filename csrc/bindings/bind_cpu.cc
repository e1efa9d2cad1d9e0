#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>

#include <string>
#include <string_view>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace airi::bindings {

void bind_cpu_linear(py::module_& m);
void bind_cpu_attention(py::module_& m);

// The submodule airi._core.cpu. Tensors cross as addresses with a dtype code.
void bind_cpu(py::module_& core) {
  py::module_ m =
      core.def_submodule("cpu", "Kernels for CPUs: linear layers, norms, paged attention, sampling.");
  py::native_enum<cpu::DType>(m, "DType", "enum.Enum",
                              "Element types that cross the binding beside an address.")
      .value("F32", cpu::DType::kF32)
      .value("BF16", cpu::DType::kBF16)
      .finalize();
  m.def("isa", [] { return std::string(cpu::isa_name(cpu::active_isa())); });
  m.def("set_isa", [](std::string_view name) { cpu::set_isa(cpu::parse_isa(name)); }, py::arg("name"));
  m.def("supported_isas", [] {
    py::list names;
    for (int isa = 0; isa <= static_cast<int>(cpu::detect_isa()); ++isa) {
      names.append(std::string(cpu::isa_name(static_cast<cpu::Isa>(isa))));
    }
    return names;
  });
  m.def("num_threads", &cpu::num_threads);
  m.def("wake_threads", &cpu::wake_threads);
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());
  bind_cpu_linear(m);
  bind_cpu_attention(m);
}

}  // namespace airi::bindings
