#include "cpu/linear.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/check.h"
#include "cpu/gemm.h"

namespace airi::cpu {
namespace {

AlignedBuffer copy_of(const float* values, std::int64_t count) {
  if (values == nullptr) return {};
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  AlignedBuffer copy(bytes);
  std::memcpy(copy.data(), values, bytes);
  return copy;
}

const float* at(const AlignedBuffer& values, std::int64_t index) {
  return values.size() == 0 ? nullptr : values.as<float>() + index;
}

void check_rows(const void* x, const void* out, std::int64_t m) {
  if (m < 0) throw InvalidArgument("m must be >= 0, got " + std::to_string(m));
  if (m > 0 && (x == nullptr || out == nullptr)) throw InvalidArgument("x and out must be addresses, got 0");
}

int columns_of(const PackedWeights& weights, std::int64_t panel) {
  return static_cast<int>(std::min<std::int64_t>(kPanel, weights.n() - panel * kPanel));
}

}  // namespace

PackedLinear::PackedLinear(std::span<const WeightBlock> blocks, std::int64_t k, DType dtype, DType compute,
                           const float* bias)
    : kernels_(AIRI_SELECT_KERNELS(kLinearKernels, active_isa())),
      row_kernels_(AIRI_SELECT_KERNELS(kNormKernels, active_isa())),
      weights_(blocks, k, dtype, compute, false),
      bias_(copy_of(bias, weights_.n())) {}

void PackedLinear::forward(const void* x, std::int64_t m, float* out, std::int64_t out_stride) const {
  run(x, m, out, out_stride, kernels_.store);
}

void PackedLinear::forward_add(const void* x, std::int64_t m, float* out, std::int64_t out_stride) const {
  run(x, m, out, out_stride, kernels_.add);
}

void PackedLinear::forward_activated(const void* x, std::int64_t m, float* out, std::int64_t out_stride,
                                     RowActivation activation) const {
  run(x, m, out, out_stride,
      [&](const float* sums, int rows, int columns, const float* bias, float* to, std::ptrdiff_t stride) {
        kernels_.store(sums, rows, columns, bias, to, stride);
        for (int r = 0; r < rows; ++r) row_kernels_.activate(activation, to + r * stride, columns);
      });
}

template <class Finish>
void PackedLinear::run(const void* x, std::int64_t m, float* out, std::int64_t out_stride,
                       Finish finish) const {
  check_rows(x, out, m);
  if (out_stride < weights_.n()) {
    throw InvalidArgument("ldo must be >= n (" + std::to_string(weights_.n()) + "), got " +
                          std::to_string(out_stride));
  }
  const Product product(kernels_, weights_, 1, x, m);
  multiply(product, [&](const Product::Sums& sums, std::int64_t row, int rows, std::int64_t panel) {
    const std::int64_t column = panel * kPanel;
    finish(sums.of[0], rows, columns_of(weights_, panel), at(bias_, column), out + row * out_stride + column,
           out_stride);
  });
}

PackedGlu::PackedGlu(const void* gate, const void* up, std::int64_t n, std::int64_t k, DType dtype,
                     DType compute, Activation activation, const float* gate_bias, const float* up_bias)
    : kernels_(AIRI_SELECT_KERNELS(kLinearKernels, active_isa())),
      weights_(std::array{WeightBlock{gate, n}, WeightBlock{up, n}}, k, dtype, compute, true),
      activation_(activation),
      gate_bias_(copy_of(gate_bias, n)),
      up_bias_(copy_of(up_bias, n)) {}

void PackedGlu::forward(const void* x, std::int64_t m, void* out) const {
  check_rows(x, out, m);
  const auto finish = weights_.compute() == DType::kF32 ? kernels_.glu_f32 : kernels_.glu_bf16;
  const std::int64_t n = weights_.n();
  const auto element = static_cast<std::int64_t>(size_of(weights_.compute()));
  const Product product(kernels_, weights_, 2, x, m);
  multiply(product, [&](const Product::Sums& sums, std::int64_t row, int rows, std::int64_t panel) {
    const std::int64_t column = panel * kPanel;
    finish(activation_, sums.of[0], sums.of[1], rows, columns_of(weights_, panel), at(gate_bias_, column),
           at(up_bias_, column), static_cast<std::byte*>(out) + (row * n + column) * element, n);
  });
}

}  // namespace airi::cpu
