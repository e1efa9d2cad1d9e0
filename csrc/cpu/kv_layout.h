#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/dtype.h"

namespace airi::cpu {

// A block-table entry counts granules of this many bytes from the arena's base.
inline constexpr std::int64_t kGranuleBytes = 4096;

// Where one model's keys and values lie in the arena. Strides are data: no kernel knows
// an order of layers, heads, keys and tokens. Never owns the memory.
//
// The head_dim elements of token t (within its block) of kv head h start at
//   base + entry * kGranuleBytes + layer_offset + h * head_stride + t * token_stride
// for keys and kv_stride bytes further for values.
//
// Thread safety: a value; const access from any thread.
// Invariant: none before check(); after it, every field is in range.
struct KvLayout {
  static constexpr int kMaxHeadDim = 256;
  static constexpr int kMaxBlockSize = 4096;

  std::byte* base = nullptr;
  int block_size = 0;  // tokens
  int num_kv_heads = 0;
  int head_dim = 0;  // a multiple of 8
  DType dtype = DType::kF32;
  std::int64_t head_stride = 0;   // bytes
  std::int64_t kv_stride = 0;     // bytes
  std::int64_t token_stride = 0;  // bytes

  // Throws InvalidArgument naming the first field that is out of range.
  void check() const;
};

}  // namespace airi::cpu
