// Attention's plan covers every pair of query and split exactly once, and its kernels stay
// inside of buffers of exactly the right size, for every instruction set of this machine:
// under ASan and UBSan this shows reads and writes past an end.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "cpu/attention.h"
#include "cpu/bf16.h"
#include "cpu/isa.h"
#include "cpu/rope.h"
#include "cpu/sample.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

// Rows of a batch with their blocks one after the other in an arena that ends with the last.
struct Step {
  Step(std::vector<std::int32_t> queries, std::vector<std::int32_t> keys, int block_size, int granules)
      : seq_lens(std::move(keys)) {
    query_start.push_back(0);
    for (const std::int32_t n : queries) query_start.push_back(query_start.back() + n);
    const int longest = *std::max_element(seq_lens.begin(), seq_lens.end());
    stride = (longest + block_size - 1) / block_size;
    for (std::size_t row = 0; row < seq_lens.size(); ++row) {
      slots.push_back(static_cast<std::int32_t>(row));
      for (int i = 0; i < stride; ++i) {
        const bool owned = i * block_size < seq_lens[row];
        table.push_back(owned ? blocks++ * granules : 1 << 30);
      }
    }
  }

  [[nodiscard]] PagedBatchArrays arrays() const {
    return {.rows = static_cast<int>(seq_lens.size()),
            .tokens = query_start.back(),
            .query_start = query_start.data(),
            .seq_lens = seq_lens.data(),
            .slots = slots.data(),
            .block_table = table.data(),
            .table_stride = stride};
  }

  std::vector<std::int32_t> query_start;
  std::vector<std::int32_t> seq_lens;
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> table;
  int stride = 0;
  int blocks = 0;
};

void plans_partition_the_work() {
  const Step step({1, 300, 1, 17, 0, 256}, {5000, 300, 1, 900, 40, 2000}, 16, 1);
  for (const int threads : {1, 2, 7, 64}) {
    for (const int window : {0, 1, 100, 700}) {
      for (const auto& [q_heads, kv_heads] : {std::pair{9, 3}, std::pair{100, 1}, std::pair{4, 4}}) {
        PagedBatch batch(step.arrays());
        const AttentionShape shape{q_heads, kv_heads, 64, window, threads};
        const AttentionPlan& plan = batch.plan(shape);
        AIRI_CHECK(&plan == &batch.plan(shape));
        std::map<std::tuple<int, int, int, int>, int> covered;  // row, query, head, split
        std::vector<int> pieces(plan.merges.size());
        for (const AttentionItem& item : plan.items) {
          AIRI_CHECK(item.num_queries * item.num_heads <= kTileRows);
          if (item.merge) ++pieces[static_cast<std::size_t>(*item.merge)];
          for (int q = item.first_query; q < item.first_query + item.num_queries; ++q) {
            for (int h = item.first_head; h < item.first_head + item.num_heads; ++h) {
              const int head = item.kv_head * (q_heads / kv_heads) + h;
              for (int s = item.split_begin; s < item.split_end; ++s) ++covered[{item.row, q, head, s}];
            }
          }
        }
        for (std::size_t i = 0; i < pieces.size(); ++i) AIRI_CHECK(pieces[i] == plan.merges[i].pieces);
        for (const auto& [key, times] : covered) AIRI_CHECK(times == 1);
        for (int row = 0; row < batch.rows(); ++row) {
          for (int q = 0; q < batch.query_len(row); ++q) {
            const int position = batch.first_position(row) + q;
            const int lowest = window > 0 ? std::max(0, position - window + 1) : 0;
            for (int head = 0; head < q_heads; ++head) {
              for (int s = lowest / kSplitKeys; s <= position / kSplitKeys; ++s) {
                AIRI_CHECK(covered.contains({row, q, head, s}));
              }
            }
          }
        }
      }
    }
  }
}

// Values of all keys are 1, so that every output must be 1 whatever the probabilities are.
void attention_stays_in_bounds(DType dtype, int head_dim, int block_size, int window) {
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t row = head_dim * element;
  const int q_heads = 6;
  const int kv_heads = 2;
  const std::int64_t block_bytes = kv_heads * 2 * block_size * row;
  const auto granules = static_cast<int>((block_bytes + kGranuleBytes - 1) / kGranuleBytes);
  const Step step({1, 33, 1}, {600, 40, 1}, block_size, granules);
  const auto last = (step.blocks - 1) * granules * kGranuleBytes + block_bytes;
  const std::unique_ptr<std::byte[]> arena(new std::byte[static_cast<std::size_t>(last)]);
  const KvLayout layout{.base = arena.get(),
                        .block_size = block_size,
                        .num_kv_heads = kv_heads,
                        .head_dim = head_dim,
                        .dtype = dtype,
                        .head_stride = 2 * block_size * row,
                        .kv_stride = block_size * row,
                        .token_stride = row};
  for (std::int64_t i = 0; i < last / element; ++i) {
    if (dtype == DType::kF32) {
      reinterpret_cast<float*>(arena.get())[i] = 1;
    } else {
      reinterpret_cast<std::uint16_t*>(arena.get())[i] = float_to_bf16(1);
    }
  }
  PagedBatch batch(step.arrays());
  const auto tokens = static_cast<std::size_t>(batch.tokens());
  const auto dims = static_cast<std::size_t>(head_dim);
  std::vector<float> qkv(tokens * (q_heads + 2 * kv_heads) * dims, 1.0F);
  std::vector<std::int32_t> positions(tokens, 3);
  const std::vector<float> cos_sin(4 * dims, 0.5F);
  const std::vector<float> norm(dims, 1.0F);
  std::vector<std::byte> q(tokens * q_heads * static_cast<std::size_t>(row));
  std::vector<std::byte> out(q.size());
  rope_kv_write(batch, layout, 0,
                {.qkv = qkv.data(),
                 .positions = positions.data(),
                 .cos_sin = cos_sin.data(),
                 .rot_dim = head_dim,
                 .q_out = q.data(),
                 .num_q_heads = q_heads,
                 .q_norm = norm.data(),
                 .k_norm = norm.data(),
                 .eps = 1e-6F});
  paged_attention(
      batch, layout, 0,
      {.q = q.data(), .out = out.data(), .num_q_heads = q_heads, .scale = 0.1F, .window = window});
  for (std::size_t i = 0; i < out.size() / static_cast<std::size_t>(element); ++i) {
    const float y = dtype == DType::kF32
                        ? reinterpret_cast<const float*>(out.data())[i]
                        : bf16_to_float(reinterpret_cast<const std::uint16_t*>(out.data())[i]);
    AIRI_CHECK(std::abs(y - 1) < 0.01F) << "out[" << i << "] = " << y;
  }
}

void sampling_stays_in_bounds(int vocab) {
  const std::unique_ptr<float[]> logits(new float[static_cast<std::size_t>(vocab)]);
  for (int i = 0; i < vocab; ++i)
    logits[static_cast<std::size_t>(i)] = static_cast<float>(i * 7919 % 97) * 0.1F;
  for (const auto& [temperature, top_k, top_p] :
       {std::tuple{0.0F, 0, 1.0F}, std::tuple{1.0F, 0, 1.0F}, std::tuple{1.0F, 7, 1.0F},
        std::tuple{1.0F, 0, 0.7F}, std::tuple{1.0F, 9, 0.5F}}) {
    const float min_p = 0;
    const std::uint64_t seed = 5;
    const std::int32_t draw = 1;
    std::int32_t token = -1;
    std::uint8_t nan = 1;
    sample({.data = logits.get(), .rows = 1, .vocab = vocab, .stride = vocab},
           {&temperature, &top_k, &top_p, &min_p, &seed, &draw, &token, &nan});
    AIRI_CHECK(nan == 0 && token >= 0 && token < vocab) << "token " << token << " of " << vocab;
  }
}

void run() {
  plans_partition_the_work();
  set_num_threads(2);
  for (int isa = 0; isa <= static_cast<int>(detect_isa()); ++isa) {
    set_isa(static_cast<Isa>(isa));
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int head_dim : {8, 40, 64, 72, 256}) {
        for (const int block_size : {8, 16, 24}) attention_stays_in_bounds(dtype, head_dim, block_size, 0);
        attention_stays_in_bounds(dtype, head_dim, 16, 9);
      }
    }
    for (const int vocab : {1, 3, 17, 63, 64, 65, 1000}) sampling_stays_in_bounds(vocab);
  }
}

}  // namespace
}  // namespace airi::cpu

int main() {
  try {
    airi::cpu::run();
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return EXIT_FAILURE;
  }
}
