#pragma once

#include <cstdint>
#include <span>

namespace airi {

// What one running prefill could take in this step.
struct PrefillDemand {
  std::int32_t start = 0;      // position of its first uncomputed token
  std::int32_t remaining = 0;  // uncomputed tokens; at least 1
};

// How one prefill's chunk is bounded.
struct ChunkRule {
  std::int32_t block_size = 16;
  std::int32_t cap = 0;   // tokens of one prefill per step; at least block_size
  bool is_whole = false;  // a prefill is one chunk; it is one block at most
};

// The largest chunk of at most `limit` tokens that ends at a block boundary or at the end of the
// prefill. REQUIRES: limit >= block_size or limit >= demand.remaining.
[[nodiscard]] std::int32_t aligned_chunk(const PrefillDemand& demand, std::int32_t limit,
                                         const ChunkRule& rule) noexcept;

// The chunk of a single prefill that may use up the whole `budget`: as aligned_chunk under the cap,
// but where the budget is what ends it, it may end inside a block.
[[nodiscard]] std::int32_t greedy_chunk(const PrefillDemand& demand, std::int32_t budget,
                                        const ChunkRule& rule) noexcept;

// Splits `budget` tokens over the running prefills, given in order of decision: each gets
// min(remaining, cap, max(block, budget / count)), then what is left goes to the first that can
// take more. Writes one chunk per demand (0: none) and returns their sum.
// REQUIRES: chunks.size() == demands.size().
std::int32_t split_budget(std::span<const PrefillDemand> demands, std::int32_t budget, const ChunkRule& rule,
                          std::span<std::int32_t> chunks) noexcept;

}  // namespace airi
