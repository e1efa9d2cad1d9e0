#include "cpu/attention_plan.h"

#include <algorithm>
#include <utility>

#include "cpu/paged_batch.h"

namespace airi::cpu {
namespace {

// Items per thread to aim for: enough that the last ones to end leave little idle.
constexpr std::int64_t kItemsPerThread = 4;

// In units of one query row against one split; packing K and V costs about 12 rows.
std::int64_t cost_of(const AttentionItem& item) {
  return std::int64_t{item.split_end - item.split_begin} * (item.num_queries * item.num_heads + 12);
}

// Every tile of a row with all of its splits; those of one kv head follow each other, because
// they read the same keys.
void append_row(const PagedBatch& batch, const AttentionShape& shape, int row,
                std::vector<AttentionItem>& items) {
  const int group = shape.num_q_heads / shape.num_kv_heads;
  const int heads = std::min(group, kTileRows);
  const int queries = std::max(1, kTileRows / heads);
  AttentionItem item{.row = row};
  for (item.kv_head = 0; item.kv_head < shape.num_kv_heads; ++item.kv_head) {
    for (int query = 0; query < batch.query_len(row); query += queries) {
      item.first_query = query;
      item.num_queries = std::min(queries, batch.query_len(row) - query);
      const int first = batch.first_position(row) + query;
      const int lowest = shape.window > 0 ? std::max(0, first - shape.window + 1) : 0;
      item.split_begin = lowest / kSplitKeys;
      const int last = shape.is_causal ? first + item.num_queries - 1 : batch.seq_len(row) - 1;
      item.split_end = last / kSplitKeys + 1;
      for (item.first_head = 0; item.first_head < group; item.first_head += heads) {
        item.num_heads = std::min(heads, group - item.first_head);
        items.push_back(item);
      }
    }
  }
}

// Appends `whole` cut into at most `pieces` items of about equal numbers of splits.
void append_pieces(AttentionPlan& plan, const AttentionItem& whole, std::int64_t pieces) {
  const std::int32_t splits = whole.split_end - whole.split_begin;
  const auto step = static_cast<std::int32_t>((splits + pieces - 1) / pieces);
  const auto index = static_cast<std::int32_t>(plan.merges.size());
  plan.merges.push_back({.pieces = (splits + step - 1) / step,
                         .split_begin = whole.split_begin,
                         .split_end = whole.split_end,
                         .workspace = plan.workspace_floats});
  const int rows = whole.num_queries * whole.num_heads;
  plan.workspace_floats += splits * partial_floats(rows, plan.shape.head_dim);
  for (std::int32_t begin = whole.split_begin; begin < whole.split_end; begin += step) {
    AttentionItem item = whole;
    item.split_begin = begin;
    item.split_end = std::min(begin + step, whole.split_end);
    item.merge = index;
    plan.items.push_back(item);
  }
}

// Orders items so that each thread's run of them (ThreadPool) starts with its costliest and
// ends with its cheapest, which are what others may steal.
void deal(std::vector<AttentionItem>& items, int threads) {
  std::stable_sort(items.begin(), items.end(),
                   [](const auto& a, const auto& b) { return cost_of(a) > cost_of(b); });
  std::vector<AttentionItem> dealt;
  dealt.reserve(items.size());
  const auto step = static_cast<std::size_t>(threads);
  for (std::size_t first = 0; first < step; ++first) {
    for (std::size_t i = first; i < items.size(); i += step) dealt.push_back(items[i]);
  }
  items = std::move(dealt);
}

}  // namespace

AttentionPlan plan_attention(const PagedBatch& batch, const AttentionShape& shape) {
  AttentionPlan plan{.shape = shape};
  std::vector<AttentionItem> whole;
  for (int row = 0; row < batch.rows(); ++row) append_row(batch, shape, row, whole);
  std::int64_t total = 0;
  for (const AttentionItem& item : whole) total += cost_of(item);
  const std::int64_t target = std::max<std::int64_t>(1, total / (shape.threads * kItemsPerThread));
  plan.items.reserve(whole.size());
  for (const AttentionItem& item : whole) {
    const std::int64_t splits = item.split_end - item.split_begin;
    const std::int64_t pieces = std::min(splits, (cost_of(item) + target - 1) / target);
    if (shape.threads > 1 && pieces > 1) {
      append_pieces(plan, item, pieces);
    } else {
      plan.items.push_back(item);
    }
  }
  deal(plan.items, shape.threads);
  plan.remaining = std::make_unique<std::atomic<std::int32_t>[]>(plan.merges.size());
  for (std::size_t i = 0; i < plan.merges.size(); ++i) plan.remaining[i] = plan.merges[i].pieces;
  return plan;
}

}  // namespace airi::cpu
