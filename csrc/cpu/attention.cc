#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"
#include "cpu/aligned_buffer.h"
#include "cpu/attention_kernels.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

void check_args(const KvLayout& layout, const AttentionArgs& args) {
  const auto refuse = [](const std::string& what) { throw InvalidArgument("paged_attention: " + what); };
  if (args.q == nullptr || args.out == nullptr) refuse("q and out must be addresses, got 0");
  if (args.num_q_heads < 1 || args.num_q_heads % layout.num_kv_heads != 0) {
    refuse("num_q_heads is " + std::to_string(args.num_q_heads) +
           ", accepted is a multiple of num_kv_heads (" + std::to_string(layout.num_kv_heads) + ")");
  }
  if (!std::isfinite(args.scale) || args.scale <= 0) {
    refuse("scale is " + std::to_string(args.scale) + ", accepted is a number above 0");
  }
  if (args.window < 0) refuse("window is " + std::to_string(args.window) + ", accepted is 0 (none) or more");
  if (args.window > 0 && !args.is_causal) {
    refuse("window is " + std::to_string(args.window) + ", accepted is 0 where attention is not causal");
  }
  if (!std::isfinite(args.softcap) || args.softcap < 0) {
    refuse("softcap is " + std::to_string(args.softcap) + ", accepted is 0 (none) or more");
  }
}

AttentionScratch& thread_scratch() {
  thread_local AlignedBuffer buffer;
  buffer.reserve(sizeof(AttentionScratch));
  return *buffer.as<AttentionScratch>();
}

AttentionTile resolve(const PagedBatch& batch, const KvLayout& layout, std::int64_t layer_offset,
                      const AttentionArgs& args, const AttentionItem& item) {
  const auto element = static_cast<std::int64_t>(size_of(layout.dtype));
  const std::int64_t head_bytes = layout.head_dim * element;
  const int group = args.num_q_heads / layout.num_kv_heads;
  const std::int64_t query_stride = args.num_q_heads * head_bytes;
  const std::int64_t token = batch.query_begin(item.row) + item.first_query;
  const std::int64_t q_offset =
      token * query_stride + (std::int64_t{item.kv_head} * group + item.first_head) * head_bytes;
  return {
      .table = batch.table(item.row),
      .kv = layout.base + layer_offset + item.kv_head * layout.head_stride,
      .kv_stride = layout.kv_stride,
      .token_stride = layout.token_stride,
      .block_size = layout.block_size,
      .head_dim = layout.head_dim,
      .dtype = layout.dtype,
      .q = static_cast<const std::byte*>(args.q) + q_offset,
      .out = static_cast<std::byte*>(args.out) + q_offset,
      .query_stride = query_stride,
      .num_queries = item.num_queries,
      .num_heads = item.num_heads,
      .first_position =
          args.is_causal ? batch.first_position(item.row) + item.first_query : batch.seq_len(item.row) - 1,
      .position_step = args.is_causal ? 1 : 0,
      .split_begin = item.split_begin,
      .split_end = item.split_end,
      .window = args.window,
      .scale = args.scale,
      .softcap = args.softcap,
      .next_table = nullptr,
      .next_kv = nullptr,
      .next_begin = 0,
      .next_end = 0,
      .partials = nullptr,
  };
}

// Tells the tile about the item that its thread computes next, unless that gets stolen.
void announce_next(const AttentionPlan& plan, std::int64_t i, const PagedBatch& batch, const KvLayout& layout,
                   std::int64_t layer_offset, AttentionTile& tile) {
  const auto index = static_cast<std::size_t>(i + 1);
  if (index >= plan.items.size()) return;
  const AttentionItem& next = plan.items[index];
  const int first = batch.first_position(next.row) + next.first_query;
  const int lowest = plan.shape.window > 0 ? first - plan.shape.window + 1 : 0;
  const int end = plan.shape.is_causal ? first + next.num_queries : batch.seq_len(next.row);
  tile.next_table = batch.table(next.row);
  tile.next_kv = layout.base + layer_offset + next.kv_head * layout.head_stride;
  tile.next_begin = std::max(next.split_begin * kSplitKeys, lowest);
  tile.next_end = std::min(next.split_end * kSplitKeys, end);
}

}  // namespace

void paged_attention(PagedBatch& batch, const KvLayout& layout, std::int64_t layer_offset,
                     const AttentionArgs& args) {
  layout.check();
  check_args(layout, args);
  batch.check_blocks(layout);
  AttentionPlan& plan = batch.plan({.num_q_heads = args.num_q_heads,
                                    .num_kv_heads = layout.num_kv_heads,
                                    .head_dim = layout.head_dim,
                                    .window = args.window,
                                    .threads = num_threads(),
                                    .is_causal = args.is_causal});
  thread_local AlignedBuffer workspace;
  workspace.reserve(static_cast<std::size_t>(plan.workspace_floats) * sizeof(float));
  float* const partials = workspace.as<float>();
  const AttentionKernels& kernels = AIRI_SELECT_KERNELS(kAttentionKernels, active_isa());
  shared_pool().parallel_for(static_cast<std::int64_t>(plan.items.size()), [&](std::int64_t i) {
    const AttentionItem& item = plan.items[static_cast<std::size_t>(i)];
    AttentionScratch& scratch = thread_scratch();
    AttentionTile tile = resolve(batch, layout, layer_offset, args, item);
    announce_next(plan, i, batch, layout, layer_offset, tile);
    if (!item.merge) return kernels.run(tile, scratch);
    const auto index = static_cast<std::size_t>(*item.merge);
    const AttentionMerge& merge = plan.merges[index];
    const std::int64_t one = partial_floats(item.num_queries * item.num_heads, layout.head_dim);
    tile.partials = partials + merge.workspace + (item.split_begin - merge.split_begin) * one;
    kernels.run(tile, scratch);
    if (plan.remaining[index].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    plan.remaining[index].store(merge.pieces, std::memory_order_relaxed);
    tile.partials = partials + merge.workspace;
    tile.split_begin = merge.split_begin;
    tile.split_end = merge.split_end;
    kernels.merge(tile, scratch);
  });
}

}  // namespace airi::cpu
