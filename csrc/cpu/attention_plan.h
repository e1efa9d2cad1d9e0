#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace airi::cpu {

class PagedBatch;

// The keys of a sequence are cut at multiples of kSplitKeys, counted from position 0.
// Softmax and the sum of values are computed within one split and the splits then merged
// from the first to the last. That order, and with it every rounding, depends on a query's
// own position only: not on its batch, its chunk, or on how items are spread over threads.
inline constexpr int kSplitKeys = 256;

// Query rows (queries times heads) that share one pass over the keys: at 48 packing K and
// V costs below a tenth of the products, and the scores (48 KiB) stay in the L2 cache.
inline constexpr int kTileRows = 48;

struct AttentionShape {
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int window = 0;  // visible keys including the query's own; 0 means all
  int threads = 0;
  bool is_causal = true;

  bool operator==(const AttentionShape&) const = default;
};

// Some queries of a sequence, some heads of one kv head's group, a range of key splits.
struct AttentionItem {
  std::int32_t row = 0;
  std::int32_t first_query = 0;  // within the row
  std::int32_t num_queries = 0;
  std::int32_t kv_head = 0;
  std::int32_t first_head = 0;  // within the group
  std::int32_t num_heads = 0;
  std::int32_t split_begin = 0;
  std::int32_t split_end = 0;
  std::optional<std::int32_t> merge = std::nullopt;  // which of the plan's merges, when it holds a part only
};

// A tile whose splits are computed by several items; the last to end merges them.
struct AttentionMerge {
  std::int32_t pieces = 0;
  std::int32_t split_begin = 0;
  std::int32_t split_end = 0;
  std::int64_t workspace = 0;  // of the first split's partial result, in floats
};

// The work of one attention call over a batch: for each thread a run of items, the costliest first.
//
// Thread safety: items and merges are read only; `remaining` is atomic.
// Invariant: the items partition all pairs of query row and visible split;
// between calls remaining[i] == merges[i].pieces.
struct AttentionPlan {
  AttentionShape shape;
  std::vector<AttentionItem> items{};
  std::vector<AttentionMerge> merges{};
  std::unique_ptr<std::atomic<std::int32_t>[]> remaining{};
  std::int64_t workspace_floats = 0;
};

// Floats of one split's partial result: per row a maximum, a sum and the padded values.
[[nodiscard]] constexpr std::int64_t partial_floats(int rows, int head_dim) {
  return std::int64_t{rows} * (2 + (head_dim + 15) / 16 * 16);
}

// REQUIRES num_q_heads to be a multiple of num_kv_heads.
[[nodiscard]] AttentionPlan plan_attention(const PagedBatch& batch, const AttentionShape& shape);

}  // namespace airi::cpu
