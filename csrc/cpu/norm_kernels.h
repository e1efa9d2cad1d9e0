#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace airi::cpu {

// Of the plain half of a transformer's MLP.
enum class RowActivation : std::uint8_t { kGelu, kGeluTanh, kRelu };

// Row kernels around the linear layers. Each works on one row of h floats, so that a row's
// result depends on nothing else.
struct NormKernels {
  // out = x / sqrt(mean(x^2) + eps) * weight, as float or bfloat16.
  void (*rms_norm_f32)(const float* x, const float* weight, void* out, std::int64_t h, float eps);
  void (*rms_norm_bf16)(const float* x, const float* weight, void* out, std::int64_t h, float eps);
  // out += x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm_add)(const float* x, const float* weight, void* out, std::int64_t h, float eps);
  // x = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
  void (*layer_norm)(const float* weight, const float* bias, float* x, std::int64_t h, float eps);
  // x = activation(x)
  void (*activate)(RowActivation activation, float* x, std::int64_t h);
  // out = x * scale
  void (*scale_f32)(const void* x, float scale, float* out, std::int64_t h);
  void (*scale_bf16)(const void* x, float scale, float* out, std::int64_t h);
  // Rounds to nearest even.
  void (*to_bf16)(const float* x, std::uint16_t* out, std::int64_t h);
};

AIRI_DECLARE_KERNELS(NormKernels, kNormKernels);

}  // namespace airi::cpu
