#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "cpu/linear.h"
#include "cpu/norm.h"

namespace py = pybind11;

namespace airi::bindings {
namespace {

using cpu::DType;
using Address = std::uintptr_t;
using Blocks = std::vector<std::pair<Address, std::int64_t>>;

template <class T>
T* ptr(Address address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): addresses cross as integers
}

cpu::Activation parse_activation(std::string_view name) {
  if (name == "silu") return cpu::Activation::kSilu;
  if (name == "gelu_tanh") return cpu::Activation::kGeluTanh;
  throw InvalidArgument("activation '" + std::string(name) + "' is unknown; accepted: silu, gelu_tanh");
}

cpu::RowActivation row_activation(std::string_view name) {
  if (name == "gelu") return cpu::RowActivation::kGelu;
  if (name == "gelu_tanh") return cpu::RowActivation::kGeluTanh;
  if (name == "relu") return cpu::RowActivation::kRelu;
  throw InvalidArgument("activation '" + std::string(name) + "' is unknown; accepted: gelu, gelu_tanh, relu");
}

cpu::PackedLinear make_linear(const std::vector<cpu::WeightBlock>& blocks, std::int64_t k, DType dtype,
                              DType compute, Address bias) {
  const py::gil_scoped_release nogil;
  return {blocks, k, dtype, compute, ptr<const float>(bias)};
}

cpu::PackedLinear fused_linear(const Blocks& blocks, std::int64_t k, DType dtype, DType compute,
                               Address bias) {
  std::vector<cpu::WeightBlock> converted;
  converted.reserve(blocks.size());
  for (const auto& [address, rows] : blocks) converted.push_back({ptr<const void>(address), rows});
  return make_linear(converted, k, dtype, compute, bias);
}

void forward(const cpu::PackedLinear& self, Address x, std::int64_t m, Address out, std::int64_t ldo) {
  const py::gil_scoped_release nogil;
  self.forward(ptr<const void>(x), m, ptr<float>(out), ldo == 0 ? self.weights().n() : ldo);
}

void forward_add(const cpu::PackedLinear& self, Address x, std::int64_t m, Address out, std::int64_t ldo) {
  const py::gil_scoped_release nogil;
  self.forward_add(ptr<const void>(x), m, ptr<float>(out), ldo == 0 ? self.weights().n() : ldo);
}

void forward_activated(const cpu::PackedLinear& self, Address x, std::int64_t m, Address out,
                       const std::string& activation) {
  const cpu::RowActivation kind = row_activation(activation);
  const py::gil_scoped_release nogil;
  self.forward_activated(ptr<const void>(x), m, ptr<float>(out), self.weights().n(), kind);
}

void bind_packed_linear(const py::module_& m) {
  py::class_<cpu::PackedLinear>(m, "PackedLinear")
      .def(py::init([](Address weight, std::int64_t n, std::int64_t k, DType weight_dtype, DType compute,
                       Address bias) {
             return make_linear({{ptr<const void>(weight), n}}, k, weight_dtype, compute, bias);
           }),
           py::arg("weight"), py::arg("n"), py::arg("k"), py::arg("weight_dtype"), py::arg("compute"),
           py::arg("bias") = 0)
      .def_static("fused", &fused_linear, py::arg("blocks"), py::arg("k"), py::arg("weight_dtype"),
                  py::arg("compute"), py::arg("bias") = 0)
      .def("forward", &forward, py::arg("x"), py::arg("m"), py::arg("out"), py::arg("ldo") = 0)
      .def("forward_add", &forward_add, py::arg("x"), py::arg("m"), py::arg("out"), py::arg("ldo") = 0)
      .def("forward_activated", &forward_activated, py::arg("x"), py::arg("m"), py::arg("out"),
           py::arg("activation"))
      .def_property_readonly("n", [](const cpu::PackedLinear& self) { return self.weights().n(); })
      .def_property_readonly("k", [](const cpu::PackedLinear& self) { return self.weights().k(); })
      .def_property_readonly("nbytes", [](const cpu::PackedLinear& self) { return self.weights().bytes(); })
      .def(
          "move_to",
          [](cpu::PackedLinear& self, Address memory) { self.weights().move_to(ptr<std::byte>(memory)); },
          py::arg("memory"))
      .def(
          "precede",
          [](cpu::PackedLinear& self, const cpu::PackedLinear& next) {
            self.weights().precede(next.weights());
          },
          py::arg("next"), py::keep_alive<1, 2>());
}

void bind_packed_glu(const py::module_& m) {
  py::class_<cpu::PackedGlu>(m, "PackedGLU")
      .def(py::init([](Address gate, Address up, std::int64_t n, std::int64_t k, DType weight_dtype,
                       DType compute, std::string_view activation, Address gate_bias, Address up_bias) {
             const cpu::Activation parsed = parse_activation(activation);
             const py::gil_scoped_release nogil;
             return cpu::PackedGlu(ptr<const void>(gate), ptr<const void>(up), n, k, weight_dtype, compute,
                                   parsed, ptr<const float>(gate_bias), ptr<const float>(up_bias));
           }),
           py::arg("gate"), py::arg("up"), py::arg("n"), py::arg("k"), py::arg("weight_dtype"),
           py::arg("compute"), py::arg("activation"), py::arg("gate_bias") = 0, py::arg("up_bias") = 0)
      .def(
          "forward",
          [](const cpu::PackedGlu& self, Address x, std::int64_t m_rows, Address out) {
            const py::gil_scoped_release nogil;
            self.forward(ptr<const void>(x), m_rows, ptr<void>(out));
          },
          py::arg("x"), py::arg("m"), py::arg("out"))
      .def_property_readonly("n", [](const cpu::PackedGlu& self) { return self.weights().n(); })
      .def_property_readonly("k", [](const cpu::PackedGlu& self) { return self.weights().k(); })
      .def_property_readonly("nbytes", [](const cpu::PackedGlu& self) { return self.weights().bytes(); })
      .def(
          "move_to",
          [](cpu::PackedGlu& self, Address memory) { self.weights().move_to(ptr<std::byte>(memory)); },
          py::arg("memory"));
}

void rms_norm(Address x, Address weight, Address out, DType out_dtype, std::int64_t m, std::int64_t h,
              float eps, std::int64_t ldx) {
  const py::gil_scoped_release nogil;
  cpu::rms_norm(ptr<const float>(x), ldx == 0 ? h : ldx, ptr<const float>(weight), ptr<void>(out), out_dtype,
                m, h, eps);
}

void rms_norm_add(Address x, Address weight, Address residual, std::int64_t m, std::int64_t h, float eps) {
  const py::gil_scoped_release nogil;
  cpu::rms_norm_add(ptr<const float>(x), ptr<const float>(weight), ptr<float>(residual), m, h, eps);
}

void layer_norm(Address weight, Address bias, Address x, std::int64_t m, std::int64_t h, float eps) {
  const py::gil_scoped_release nogil;
  cpu::layer_norm(ptr<const float>(weight), ptr<const float>(bias), ptr<float>(x), m, h, eps);
}

void embed(Address table, DType dtype, Address ids, std::int64_t m, std::int64_t h, Address out, float scale,
           std::optional<std::int64_t> rows) {
  const py::gil_scoped_release nogil;
  cpu::embed(ptr<const void>(table), dtype, rows, ptr<const std::int32_t>(ids), m, h, ptr<float>(out), scale);
}

void gather_rows(Address x, std::int64_t row_bytes, Address rows, std::int64_t m, Address out) {
  const py::gil_scoped_release nogil;
  cpu::gather_rows(ptr<const void>(x), row_bytes, ptr<const std::int32_t>(rows), m, ptr<void>(out));
}

void to_bf16(Address x, Address out, std::int64_t count) {
  const py::gil_scoped_release nogil;
  cpu::to_bf16(ptr<const float>(x), ptr<std::uint16_t>(out), count);
}

void to_f32(Address x, Address out, std::int64_t count) {
  const py::gil_scoped_release nogil;
  cpu::to_f32(ptr<const std::uint16_t>(x), ptr<float>(out), count);
}

void bind_rows(py::module_& m) {
  m.def("rms_norm", &rms_norm, py::arg("x"), py::arg("weight"), py::arg("out"), py::arg("out_dtype"),
        py::arg("m"), py::arg("h"), py::arg("eps"), py::arg("ldx") = 0);
  m.def("rms_norm_add", &rms_norm_add, py::arg("x"), py::arg("weight"), py::arg("residual"), py::arg("m"),
        py::arg("h"), py::arg("eps"));
  m.def("layer_norm", &layer_norm, py::arg("weight"), py::arg("bias"), py::arg("x"), py::arg("m"),
        py::arg("h"), py::arg("eps"));
  m.def("embed", &embed, py::arg("table"), py::arg("dtype"), py::arg("ids"), py::arg("m"), py::arg("h"),
        py::arg("out"), py::arg("scale") = 1.0F, py::arg("rows") = py::none());
  m.def("gather_rows", &gather_rows, py::arg("x"), py::arg("row_bytes"), py::arg("rows"), py::arg("m"),
        py::arg("out"));
  m.def("to_bf16", &to_bf16, py::arg("x"), py::arg("out"), py::arg("count"));
  m.def("to_f32", &to_f32, py::arg("x"), py::arg("out"), py::arg("count"));
}

}  // namespace

void bind_cpu_linear(py::module_& m) {
  bind_packed_linear(m);
  bind_packed_glu(m);
  bind_rows(m);
}

}  // namespace airi::bindings
