#pragma once

#include <cstdint>

#include "cpu/kv_layout.h"
#include "cpu/paged_batch.h"

namespace airi::cpu {

struct AttentionArgs {
  const void* q = nullptr;  // [tokens, num_q_heads, head_dim] in the layout's dtype
  void* out = nullptr;      // as q
  int num_q_heads = 0;
  float scale = 0;
  int window = 0;         // visible keys including the query's own; 0: all
  float softcap = 0;      // scores become softcap * tanh(score / softcap); 0: unchanged
  bool is_causal = true;  // else every query sees all keys of its row; there is no window then
};

// Attention of every query of the batch over its sequence's paged keys and values, causal
// unless said: decode rows and prefill chunks together. Reads only keys that some query sees and only
// the blocks that hold them.
//
// In float32 a query's result is the same to the last bit whatever else is in the batch,
// however its prompt was cut into chunks, and on any number of threads.
//
// Throws InvalidArgument for arguments out of range. One caller per batch at a time.
void paged_attention(PagedBatch& batch, const KvLayout& layout, std::int64_t layer_offset,
                     const AttentionArgs& args);

}  // namespace airi::cpu
