#include "sched/planner.h"

#include <algorithm>

namespace airi {

std::int32_t aligned_chunk(const PrefillDemand& demand, std::int32_t limit, const ChunkRule& rule) noexcept {
  if (limit >= demand.remaining) return demand.remaining;
  const std::int32_t end = (demand.start + limit) / rule.block_size * rule.block_size;
  return end - demand.start;
}

std::int32_t greedy_chunk(const PrefillDemand& demand, std::int32_t budget, const ChunkRule& rule) noexcept {
  const std::int32_t wanted = aligned_chunk(demand, std::min(rule.cap, demand.remaining), rule);
  return std::min(wanted, budget);
}

std::int32_t split_budget(std::span<const PrefillDemand> demands, std::int32_t budget, const ChunkRule& rule,
                          std::span<std::int32_t> chunks) noexcept {
  if (demands.empty()) return 0;
  const auto count = static_cast<std::int32_t>(demands.size());
  const std::int32_t share = std::min(rule.cap, std::max(rule.block_size, budget / count));
  std::int32_t left = budget;
  for (std::size_t i = 0; i < demands.size(); ++i) {
    chunks[i] = std::min(aligned_chunk(demands[i], share, rule), left);
    left -= chunks[i];
  }
  for (std::size_t i = 0; i < demands.size() && left > 0; ++i) {
    const std::int32_t whole = greedy_chunk(demands[i], chunks[i] + left, rule);
    left -= std::max(whole - chunks[i], 0);
    chunks[i] = std::max(whole, chunks[i]);
  }
  return budget - left;
}

}  // namespace airi
