#include "sched/swapper.h"

#include <algorithm>
#include <limits>
#include <span>

#include "sched/load_split.h"

namespace airi {

std::int32_t Swapper::first_lost(const Request& request) const noexcept {
  const auto& table = request.block_table;
  const auto lost =
      std::ranges::find_if(table, [this](BlockId block) { return tables_.pool().ref_count(block) == 1; });
  return static_cast<std::int32_t>(lost - table.begin());
}

// Behind contents that turned out not to be trusted nothing is ever found again.
std::int32_t Swapper::first_unknown(const Request& request) const noexcept {
  const auto published =
      std::span(request.block_table).first(static_cast<std::size_t>(request.num_published));
  const auto unknown =
      std::ranges::find_if(published, [this](BlockId block) { return !tables_.pool().is_published(block); });
  return static_cast<std::int32_t>(unknown - published.begin());
}

Swapper::Extent Swapper::extent(const Request& request) const noexcept {
  const std::int32_t end = first_unknown(request);
  Extent extent{.first = std::min(first_lost(request), end)};
  extent.full = end - extent.first;
  for (std::int32_t i = extent.first; i < end; ++i) {
    const BlockId block = request.block_table[static_cast<std::size_t>(i)];
    const bool has_copy = tables_.pool().tiers()->has_host_copy(tables_.pool().entry_of(block));
    extent.to_store += has_copy ? 0 : 1;
  }
  return extent;
}

ComebackCosts Swapper::costs(const Request& request) const {
  const Extent lost = extent(request);
  const TierCache& tiers = *tables_.pool().tiers();
  const std::int32_t size = tables_.block_size();
  const auto prefill = [&](std::int32_t from) {
    return prefill_micros(step_time_, from, request.num_computed, chunk_);
  };
  ComebackCosts costs{.recompute = prefill(lost.first * size),
                      .swap = std::numeric_limits<double>::infinity()};
  if (lost.full == 0 || !tiers.can_store(lost.to_store)) return costs;
  costs.swap = tiers.transfers().estimate(MemoryOpKind::kStore, lost.to_store, tiers.block_bytes()) +
               tiers.transfers().estimate(MemoryOpKind::kLoad, lost.full, tiers.block_bytes()) +
               prefill((lost.first + lost.full) * size);
  return costs;
}

void Swapper::keep(const Request& request) {
  TierCache* tiers = tables_.pool().tiers();
  if (tiers == nullptr || request.is_planned_out() || !swaps(costs(request))) return;
  const Extent lost = extent(request);
  std::vector<TierPin> pins;
  pins.reserve(static_cast<std::size_t>(lost.full));
  for (std::int32_t i = lost.first; i < lost.first + lost.full; ++i) {
    const BlockId block = request.block_table[static_cast<std::size_t>(i)];
    const EntryId entry = tables_.pool().entry_of(block);
    if (!tiers->store(entry, block)) break;
    pins.push_back(tiers->pin(entry));
  }
  ++num_swaps_;
  pins_.emplace(request.serial, std::move(pins));
  tables_.pool().drop_lost();
}

void Swapper::release(const Request& request) {
  if (pins_.empty()) return;
  const auto kept = pins_.find(request.serial);
  if (kept == pins_.end()) return;
  for (const TierPin& pin : kept->second) tables_.pool().tiers()->unpin(pin);
  pins_.erase(kept);
}

}  // namespace airi
