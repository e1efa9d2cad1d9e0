#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace airi::cpu {

// One token's heads: `heads` query heads, then key heads, then value heads in `qkv`.
struct RopeToken {
  const float* qkv;
  const float* cos_sin;  // rot_dim / 2 cosines, then as many sines
  std::byte* q_out;      // heads adjacent
  std::byte* keys;       // of the first kv head in the cache
  std::byte* values;
};

struct RopeShape {
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  int rot_dim;
  DType dtype;
  std::int64_t head_stride;  // of keys and values, bytes
  const float* q_norm;       // [head_dim], or null
  const float* k_norm;
  float eps;
};

struct RopeKernels {
  void (*run)(const RopeShape& shape, const RopeToken& token);
};

AIRI_DECLARE_KERNELS(RopeKernels, kRopeKernels);

}  // namespace airi::cpu
