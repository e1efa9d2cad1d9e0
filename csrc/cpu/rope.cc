#include "cpu/rope.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "cpu/rope_kernels.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

// Tokens per chunk of work: a few microseconds, well above the cost of claiming a chunk.
constexpr int kChunkTokens = 8;

void check_args(const KvLayout& layout, const RopeArgs& args) {
  const auto refuse = [](const std::string& what) { throw InvalidArgument("rope_kv_write: " + what); };
  if (args.qkv == nullptr || args.positions == nullptr || args.q_out == nullptr) {
    refuse("qkv, positions and q_out must be addresses, got 0");
  }
  if (args.rot_dim < 0 || args.rot_dim % 2 != 0 || args.rot_dim > layout.head_dim) {
    refuse("rot_dim is " + std::to_string(args.rot_dim) + ", accepted is an even number up to head_dim (" +
           std::to_string(layout.head_dim) + ")");
  }
  if (args.rot_dim > 0 && args.cos_sin == nullptr) refuse("cos_sin must be an address, got 0");
  if (args.num_q_heads < 1) {
    refuse("num_q_heads is " + std::to_string(args.num_q_heads) + ", accepted is 1 or more");
  }
}

RopeToken resolve(const PagedBatch& batch, const KvLayout& layout, std::int64_t layer_offset,
                  const RopeArgs& args, int token) {
  const int row = batch.row_of_token(token);
  const int key = batch.first_position(row) + token - batch.query_begin(row);
  const std::int64_t entry = batch.table(row)[key / layout.block_size];
  std::byte* const block = layout.base + entry * kGranuleBytes + layer_offset;
  std::byte* const keys = block + key % layout.block_size * layout.token_stride;
  const std::int64_t heads = args.num_q_heads + 2 * layout.num_kv_heads;
  const auto element = static_cast<std::int64_t>(size_of(layout.dtype));
  return {
      .qkv = args.qkv + token * heads * layout.head_dim,
      .cos_sin = args.cos_sin + std::int64_t{args.positions[token]} * args.rot_dim,
      .q_out = static_cast<std::byte*>(args.q_out) +
               std::int64_t{token} * args.num_q_heads * layout.head_dim * element,
      .keys = keys,
      .values = keys + layout.kv_stride,
  };
}

}  // namespace

void rope_kv_write(const PagedBatch& batch, const KvLayout& layout, std::int64_t layer_offset,
                   const RopeArgs& args) {
  layout.check();
  check_args(layout, args);
  batch.check_blocks(layout);
  const RopeShape shape{.num_q_heads = args.num_q_heads,
                        .num_kv_heads = layout.num_kv_heads,
                        .head_dim = layout.head_dim,
                        .rot_dim = args.rot_dim,
                        .dtype = layout.dtype,
                        .head_stride = layout.head_stride,
                        .q_norm = args.q_norm,
                        .k_norm = args.k_norm,
                        .eps = args.eps};
  const RopeKernels& kernels = AIRI_SELECT_KERNELS(kRopeKernels, active_isa());
  const int chunks = (batch.tokens() + kChunkTokens - 1) / kChunkTokens;
  shared_pool().parallel_for(chunks, [&](std::int64_t chunk) {
    const int begin = static_cast<int>(chunk) * kChunkTokens;
    const int end = std::min(begin + kChunkTokens, batch.tokens());
    for (int token = begin; token < end; ++token) {
      kernels.run(shape, resolve(batch, layout, layer_offset, args, token));
    }
  });
}

}  // namespace airi::cpu
