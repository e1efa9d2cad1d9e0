#include "kv/slab_exchange.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "base/check.h"

namespace airi {

SlabExchange::SlabExchange(SlabArena& arena, Micros hysteresis) : arena_(arena), hysteresis_(hysteresis) {
  if (hysteresis < 0 || hysteresis > kMaxMicros) {
    throw InvalidArgument("slab_hysteresis_us must lie in [0, 2^53], got " + std::to_string(hysteresis));
  }
}

void SlabExchange::attach(ModelId model, SlabHolder* holder) {
  const std::size_t size = std::max(holders_.size(), index(model) + 1);
  holders_.resize(size);
  num_missing_.resize(size);
  is_short_.resize(size);
  wanted_.resize(size);
  targets_.resize(size);
  donors_.reserve(size);
  holders_[index(model)] = holder;
  num_missing_[index(model)] = 0;
  is_short_[index(model)] = false;
}

void SlabExchange::refresh_targets(ModelId asking, std::int32_t blocks) {
  for (std::size_t i = 0; i < holders_.size(); ++i) {
    SlabHolder* const holder = holders_[i];
    const std::int32_t more = index(asking) == i ? blocks : 0;
    wanted_[i] = holder == nullptr ? 0 : wanted_slabs(*holder, more);
  }
  std::ranges::copy(arena_.targets(wanted_), targets_.begin());
}

// More blocks are asked for where all that are available do not suffice.
std::int64_t SlabExchange::wanted_slabs(SlabHolder& holder, std::int32_t more) {
  const BlockPool& pool = holder.slab_pool();
  const std::int32_t beside = more > 0 ? pool.num_available() + more : holder.num_promised();
  const std::int64_t running = std::int64_t{pool.num_active()} + beside;
  return ceil_div<std::int64_t>(std::max(holder.num_wanted(), running), pool.shape().blocks_per_slab);
}

bool SlabExchange::grow(ModelId model, std::int32_t blocks, TimePoint now, MemoryOps& ops) {
  collect_drained();
  refresh_targets(model, blocks);
  const std::int32_t needed = ceil_div(blocks, holder(model).slab_pool().shape().blocks_per_slab);
  std::int32_t taken = 0;
  while (taken < needed && try_take_one(model, needed - taken, now, ops)) ++taken;
  // Those that wait behind the one that asks need theirs soon, and slabs take long to drain.
  const std::int32_t due = std::max(target(model) - arena_.num_owned(model), 0);
  const std::int32_t missing = taken < needed ? due : 0;
  num_missing_[index(model)] = missing;
  is_short_[index(model)] = taken < needed && arena_.num_owned(model) < arena_.limits(model).max;
  if (missing > 0) drain_for(model, missing, now);
  return taken > 0;
}

bool SlabExchange::others_wait(ModelId model) const noexcept {
  for (std::size_t i = 0; i < holders_.size(); ++i) {
    const ModelId other{static_cast<std::int32_t>(i)};
    if (other == model || holders_[i] == nullptr || num_missing_[i] == 0) continue;
    if (arena_.num_owned(other) < target(other)) return true;
  }
  return false;
}

bool SlabExchange::try_take_one(ModelId model, std::int32_t missing, TimePoint now, MemoryOps& ops) {
  const std::int32_t owned = arena_.num_owned(model);
  const bool is_due = owned < target(model);
  if (owned >= arena_.limits(model).max || ops.room() <= 0) return false;
  const SlabOwner owner{model, SlabUse::kKv};
  std::optional<SlabId> slab = arena_.find_free(owner);
  // Beyond its target it takes what is FREE, where that suffices and nobody else waits for it.
  if (!is_due && (arena_.num_free() < missing || others_wait(model))) return false;
  ops.set_aside(1);  // what is evicted is stored, and the slab must be zeroed yet
  if (!slab) slab = reclaim(model, now);
  if (!slab && owned < arena_.limits(model).min) slab = vacate_one(model, now);
  ops.set_aside(0);
  if (!slab) return false;
  if (arena_.give(*slab, owner, now)) {
    const std::int64_t granules = arena_.slab_bytes() / kGranuleBytes;
    const bool added =
        ops.try_add({.kind = MemoryOpKind::kZero, .from = raw(*slab) * granules, .granules = granules});
    AIRI_CHECK(added) << "no room to zero slab " << raw(*slab);
  }
  holder(model).slab_pool().add_slab(*slab);
  return true;
}

void SlabExchange::rank_donors(ModelId asking, bool keeps_target) {
  donors_.clear();
  for (std::size_t i = 0; i < holders_.size(); ++i) {
    const ModelId other{static_cast<std::int32_t>(i)};
    if (other == asking || holders_[i] == nullptr) continue;
    const std::int32_t keep = keeps_target ? target(other) : arena_.min_of(other);
    if (arena_.num_owned(other) > keep) donors_.push_back(other);
  }
  const auto beyond = [this](ModelId model) { return arena_.num_owned(model) - target(model); };
  std::ranges::sort(
      donors_, [&](ModelId a, ModelId b) { return beyond(a) != beyond(b) ? beyond(a) > beyond(b) : a < b; });
}

bool SlabExchange::has_room_without(SlabId slab, const BlockPool& pool, std::int32_t promised) {
  const std::int32_t lost = pool.drains(slab) ? 0 : pool.shape().blocks_per_slab - pool.num_active_in(slab);
  return pool.num_available() - lost >= promised;
}

std::optional<SlabId> SlabExchange::choose(ModelId owner, Purpose purpose, Micros resting,
                                           TimePoint now) const {
  const BlockPool& pool = holder(owner).slab_pool();
  const std::int32_t promised = holder(owner).num_promised();
  std::optional<SlabId> best;
  std::tuple<std::int32_t, std::int32_t, TimePoint> best_key;
  for (std::int32_t i = 0; i < arena_.num_slabs(); ++i) {
    const SlabId slab{i};
    if (!pool.has_slab(slab) || now - arena_.moved_at(slab) < resting) continue;
    const bool in_use = pool.num_active_in(slab) > 0;
    if (purpose == Purpose::kTake && in_use) continue;
    if (purpose == Purpose::kDrain && (!in_use || pool.drains(slab))) continue;
    const std::tuple key{pool.num_active_in(slab), pool.num_cached_in(slab), arena_.moved_at(slab)};
    if (best && key >= best_key) continue;
    // Vacating takes off what does not fit any more.
    if (purpose != Purpose::kVacate && !has_room_without(slab, pool, promised)) continue;
    best = slab;
    best_key = key;
  }
  return best;
}

std::optional<SlabId> SlabExchange::reclaim(ModelId model, TimePoint now) {
  const bool is_below_min = arena_.num_owned(model) < arena_.limits(model).min;
  const Micros resting = is_below_min || !holder(model).is_running() ? 0 : hysteresis_;
  rank_donors(model, !is_below_min);
  for (const ModelId donor : donors_) {
    const std::optional<SlabId> slab = choose(donor, Purpose::kTake, resting, now);
    if (!slab) continue;
    release(*slab);
    ++num_reclaims_;
    return slab;
  }
  return std::nullopt;
}

std::optional<SlabId> SlabExchange::vacate_one(ModelId model, TimePoint now) {
  rank_donors(model, false);
  for (const ModelId donor : donors_) {
    const std::optional<SlabId> slab = choose(donor, Purpose::kVacate, 0, now);
    if (!slab || !try_clear(*slab, now)) continue;
    ++num_vacates_;
    return slab;
  }
  return std::nullopt;
}

void SlabExchange::drain_for(ModelId model, std::int32_t missing, TimePoint now) {
  for (SlabHolder* holder : holders_) {
    if (holder != nullptr) missing -= holder->slab_pool().num_draining();
  }
  if (missing <= 0) return;
  const Micros resting = holder(model).is_running() ? hysteresis_ : 0;
  rank_donors(model, true);
  for (const ModelId donor : donors_) {
    BlockPool& pool = holder(donor).slab_pool();
    std::int32_t beyond = arena_.num_owned(donor) - pool.num_draining() - target(donor);
    for (; missing > 0 && beyond > 0; --missing, --beyond) {
      const std::optional<SlabId> slab = choose(donor, Purpose::kDrain, resting, now);
      if (!slab) break;
      pool.drain_slab(*slab);
    }
  }
}

void SlabExchange::release(SlabId slab) {
  holder(arena_.owner(slab)->model).slab_pool().remove_slab(slab);
  arena_.take_back(slab);
}

void SlabExchange::collect_drained() {
  for (SlabHolder* holder : holders_) {
    if (holder == nullptr) continue;
    const BlockPool& pool = holder->slab_pool();
    for (std::int32_t i = 0; i < arena_.num_slabs() && pool.num_draining() > 0; ++i) {
      const SlabId slab{i};
      if (pool.has_slab(slab) && pool.drains(slab) && pool.num_active_in(slab) == 0) release(slab);
    }
  }
}

void SlabExchange::lend(ModelId model) {
  for (std::int32_t i = 0; i < arena_.num_slabs(); ++i) {
    if (arena_.owner(SlabId{i}) == SlabOwner{model, SlabUse::kKv}) release(SlabId{i});
  }
}

bool SlabExchange::try_clear(SlabId slab, TimePoint now) {
  const std::optional<SlabOwner> owner = arena_.owner(slab);
  if (!owner) return true;
  AIRI_CHECK(owner->use == SlabUse::kKv)
      << "slab " << raw(slab) << " holds weights of model " << raw(owner->model);
  SlabHolder& holding = holder(owner->model);
  holding.vacate(slab, now);
  if (holding.slab_pool().num_active_in(slab) == 0) {
    release(slab);
    return true;
  }
  if (!holding.slab_pool().drains(slab)) holding.slab_pool().drain_slab(slab);
  return false;
}

void SlabExchange::check_invariants() const {
  for (std::size_t m = 0; m < holders_.size(); ++m) {
    if (holders_[m] == nullptr) continue;
    const BlockPool& pool = holders_[m]->slab_pool();
    for (std::int32_t i = 0; i < arena_.num_slabs(); ++i) {
      const SlabOwner owner{ModelId{static_cast<std::int32_t>(m)}, SlabUse::kKv};
      AIRI_CHECK(pool.has_slab(SlabId{i}) == (arena_.owner(SlabId{i}) == owner))
          << "slab " << i << " and the pool of model " << m << " disagree";
    }
    AIRI_CHECK(pool.num_available() >= holders_[m]->num_promised())
        << "model " << m << " promised " << holders_[m]->num_promised() << " blocks of "
        << pool.num_available();
  }
}

}  // namespace airi
