#pragma once

#include <cstdint>

#include "cpu/kv_layout.h"
#include "cpu/paged_batch.h"

namespace airi::cpu {

struct RopeArgs {
  const float* qkv = nullptr;               // [tokens, (num_q_heads + 2 num_kv_heads) * head_dim]
  const std::int32_t* positions = nullptr;  // [tokens], lines of cos_sin
  const float* cos_sin = nullptr;           // [positions, rot_dim]: cosines, then sines
  int rot_dim = 0;                          // even, at most head_dim; the rest is not rotated
  void* q_out = nullptr;                    // [tokens, num_q_heads, head_dim] in the layout's dtype
  int num_q_heads = 0;
  const float* q_norm = nullptr;  // [head_dim] weights of an RMS norm over each head, or null
  const float* k_norm = nullptr;
  float eps = 0;
};

// Norms (if asked for) and rotates queries and keys by the rotate-half rule, writes
// queries to q_out and keys and values to their places in the paged cache. Tokens are the
// last ones of their rows' sequences. A token's result depends on that token only.
//
// Throws InvalidArgument for arguments out of range.
void rope_kv_write(const PagedBatch& batch, const KvLayout& layout, std::int64_t layer_offset,
                   const RopeArgs& args);

}  // namespace airi::cpu
