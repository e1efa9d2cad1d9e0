#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/attention_plan.h"
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/kv_layout.h"

namespace airi::cpu {

// One item with its addresses resolved. Query row r of the tile is query r / num_heads,
// head r % num_heads; it sees the keys from max(0, position - window + 1) to its position. Where
// attention is not causal every query has the position of the last key.
struct AttentionTile {
  const std::int32_t* table;  // the sequence's blocks
  const std::byte* kv;        // base + layer offset + kv head: a block's first key without its entry
  std::int64_t kv_stride;
  std::int64_t token_stride;
  int block_size;
  int head_dim;
  DType dtype;
  const std::byte* q;  // first query, first head; heads are adjacent
  std::byte* out;
  std::int64_t query_stride;  // bytes between queries, of q and out
  int num_queries;
  int num_heads;
  int first_position;
  int position_step;  // from one query to the next
  int split_begin;
  int split_end;
  int window;  // 0: none
  float scale;
  float softcap;  // 0: none
  // The keys of the item that this thread probably computes next, to fetch them early.
  const std::int32_t* next_table;
  const std::byte* next_kv;
  int next_begin;  // positions; none unless below next_end
  int next_end;
  float* partials;  // where to leave each split's partial result; null: write out
};

// Working memory of one thread, in floats.
struct AttentionScratch {
  static constexpr int kRows = kTileRows;
  static constexpr int kSubtileKeys = 64;  // keys packed at a time

  alignas(64) float queries[kRows * KvLayout::kMaxHeadDim];
  alignas(64) float scores[kRows * kSplitKeys];
  alignas(64) float packed[kSubtileKeys * KvLayout::kMaxHeadDim];
  alignas(64) float values[kRows * KvLayout::kMaxHeadDim];  // of the current split
  alignas(64) float total[kRows * KvLayout::kMaxHeadDim];
  int positions[kRows];  // of each row's query
  float split_max[kRows];
  float split_sum[kRows];
  float total_max[kRows];
  float total_sum[kRows];
};

struct AttentionKernels {
  // Computes the tile's splits and writes `out`, or `partials`.
  void (*run)(const AttentionTile& tile, AttentionScratch& scratch);
  // Merges the partial results of the tile's splits and writes `out`.
  void (*merge)(const AttentionTile& tile, AttentionScratch& scratch);
};

AIRI_DECLARE_KERNELS(AttentionKernels, kAttentionKernels);

}  // namespace airi::cpu
