#include "kv/slab_arena.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/check.h"

namespace airi {
namespace {

// Slabs times weights.
__extension__ typedef __int128 I128;

// Weights count as they are written, in 10^-9: 0.6 is three times 0.2, which it is not in binary. What is
// beyond that never decides, so that guarantees and targets are cut from the same numbers.
std::int64_t weight_units(double weight) { return std::llrint(weight * 1e9); }

// Nothing where nobody counts: every model is gone.
std::int32_t part_of(std::int64_t slabs, std::int64_t weight, I128 weights) {
  if (weights == 0) return 0;
  return static_cast<std::int32_t>(I128{slabs} * weight / weights);
}

}  // namespace

SlabArena::SlabArena(std::int64_t arena_bytes, std::int64_t slab_bytes) : slab_bytes_(slab_bytes) {
  if (slab_bytes <= 0 || slab_bytes % kGranuleBytes != 0) {
    throw InvalidArgument("slab_bytes must be a positive multiple of " + std::to_string(kGranuleBytes) +
                          ", got " + std::to_string(slab_bytes));
  }
  if (arena_bytes < slab_bytes) {
    throw InvalidArgument("arena_bytes must hold at least one slab of " + std::to_string(slab_bytes) +
                          " bytes, got " + std::to_string(arena_bytes));
  }
  if (arena_bytes / kGranuleBytes > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("arena_bytes must be below 8 TiB, got " + std::to_string(arena_bytes));
  }
  slabs_.resize(static_cast<std::size_t>(arena_bytes / slab_bytes));
  num_free_ = num_slabs();
}

ModelId SlabArena::add_model(const SlabLimits& limits, std::int32_t num_weights) {
  const std::string who = "model " + std::to_string(models_.size());
  if (limits.min < 0 || limits.max < 1 || limits.min > limits.max) {
    throw InvalidArgument(who + " needs 0 <= min_slabs <= max_slabs and max_slabs >= 1, got " +
                          std::to_string(limits.min) + " and " + std::to_string(limits.max));
  }
  if (!(limits.weight >= 1.0 / 1024 && limits.weight <= 1024)) {
    throw InvalidArgument("slab_weight must lie in [1/1024, 1024], got " + std::to_string(limits.weight));
  }
  if (num_weights < 0) {
    throw InvalidArgument("weight_slabs must be at least 0, got " + std::to_string(num_weights));
  }
  const std::int64_t left = surplus();
  if (limits.min + std::int64_t{num_weights} > left) {
    throw InvalidArgument(who + " wants " + std::to_string(limits.min + std::int64_t{num_weights}) +
                          " slabs, " + std::to_string(left) + " of " + std::to_string(num_slabs()) +
                          " are not promised to others");
  }
  models_.push_back({.limits = limits, .weight = weight_units(limits.weight), .num_weights = num_weights});
  for (std::size_t i = 0; i < models_.size(); ++i) {
    if (models_[i].is_removed || guaranteed(ModelId{static_cast<std::int32_t>(i)}) > 0) continue;
    models_.pop_back();
    throw InvalidArgument("model " + std::to_string(i) + " gets no slab of the arena");
  }
  targets_.resize(models_.size());
  is_settled_.resize(models_.size());
  return ModelId{static_cast<std::int32_t>(models_.size()) - 1};
}

void SlabArena::remove_model(ModelId model) {
  Model& removed = models_.at(index(model));
  for (const Slab& slab : slabs_) {
    AIRI_CHECK(!slab.owner || slab.owner->model != model) << "model " << raw(model) << " owns slabs";
  }
  removed.is_removed = true;
  removed.is_awake = false;
  removed.num_weights = 0;
}

void SlabArena::set_awake(ModelId model, bool is_awake) { models_.at(index(model)).is_awake = is_awake; }

std::int64_t SlabArena::surplus() const noexcept {
  std::int64_t left = num_slabs();
  for (const Model& model : models_) {
    left -= model.num_weights;
    // A model that sleeps has lent its minimum but will wake.
    if (!model.is_removed) left -= model.limits.min;
  }
  return left;
}

std::span<const std::int32_t> SlabArena::targets(std::span<const std::int64_t> wanted) {
  std::int64_t left = num_slabs();
  I128 weights = 0;
  for (std::size_t i = 0; i < models_.size(); ++i) {
    const Model& model = models_[i];
    left -= model.is_awake ? model.limits.min + model.num_weights : 0;
    is_settled_[i] = model.is_awake ? 0 : 1;
    targets_[i] = model.is_awake ? model.limits.min : 0;
    weights += model.is_awake ? model.weight : 0;
  }
  const auto beyond_min = [&](std::size_t i) {
    const SlabLimits& limits = models_[i].limits;
    return std::clamp<std::int64_t>(wanted[i], limits.min, limits.max) - limits.min;
  };
  // Who wants no more than its part gets that, and leaves the rest to the others.
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t i = 0; i < models_.size(); ++i) {
      if (is_settled_[i] != 0) continue;
      const std::int64_t want = beyond_min(i);
      if (want * weights > I128{left} * models_[i].weight) continue;
      targets_[i] += static_cast<std::int32_t>(want);
      left -= want;
      weights -= models_[i].weight;
      is_settled_[i] = 1;
      changed = true;
    }
  }
  for (std::size_t i = 0; i < models_.size(); ++i) {
    if (is_settled_[i] == 0) targets_[i] += part_of(left, models_[i].weight, weights);
  }
  return targets_;
}

std::int32_t SlabArena::guaranteed(ModelId model) const {
  I128 weights = 0;
  for (const Model& other : models_) weights += other.is_removed ? 0 : other.weight;
  const Model& own = models_.at(index(model));
  return std::min(own.limits.max, own.limits.min + part_of(surplus(), own.weight, weights));
}

std::optional<SlabId> SlabArena::find_free(const SlabOwner& owner) const noexcept {
  std::optional<SlabId> lowest;
  for (std::int32_t i = 0; i < num_slabs() && num_free_ > 0; ++i) {
    const Slab& slab = slabs_[static_cast<std::size_t>(i)];
    if (slab.owner) continue;
    if (slab.last_owner == owner) return SlabId{i};
    if (!lowest) lowest = SlabId{i};
  }
  return lowest;
}

bool SlabArena::give(SlabId slab, const SlabOwner& owner, TimePoint now) {
  Slab& given = slabs_.at(index(slab));
  AIRI_CHECK(!given.owner) << "slab " << raw(slab) << " is not FREE";
  Model& model = models_.at(index(owner.model));
  if (owner.use == SlabUse::kKv) ++model.num_kv;
  AIRI_CHECK(model.num_kv <= model.limits.max) << "model " << raw(owner.model) << " has all it may have";
  const bool is_dirty = given.last_owner && *given.last_owner != owner;
  given.owner = given.last_owner = owner;
  given.moved_at = now;
  --num_free_;
  return is_dirty;
}

void SlabArena::take_back(SlabId slab) {
  Slab& taken = slabs_.at(index(slab));
  AIRI_CHECK(taken.owner) << "slab " << raw(slab) << " is FREE";
  if (taken.owner->use == SlabUse::kKv) --models_[index(taken.owner->model)].num_kv;
  taken.owner.reset();
  ++num_free_;
}

std::vector<SlabId> SlabArena::owned_by(ModelId model) const {
  std::vector<SlabId> slabs;
  for (std::int32_t i = 0; i < num_slabs(); ++i) {
    if (slabs_[static_cast<std::size_t>(i)].owner == SlabOwner{model, SlabUse::kKv}) {
      slabs.push_back(SlabId{i});
    }
  }
  return slabs;
}

std::int32_t SlabArena::blocks_per_slab(std::int64_t bytes_per_block) const {
  if (bytes_per_block <= 0 || bytes_per_block % kGranuleBytes != 0 || bytes_per_block > slab_bytes_) {
    throw InvalidArgument("bytes_per_block must be a positive multiple of " + std::to_string(kGranuleBytes) +
                          " that fits a slab of " + std::to_string(slab_bytes_) + " bytes, got " +
                          std::to_string(bytes_per_block));
  }
  return static_cast<std::int32_t>(slab_bytes_ / bytes_per_block);
}

std::vector<std::int32_t> SlabArena::block_entries(std::span<const SlabId> slabs,
                                                   std::int64_t bytes_per_block) const {
  const std::int32_t per_slab = blocks_per_slab(bytes_per_block);
  std::vector<std::int32_t> entries;
  entries.reserve(slabs.size() * static_cast<std::size_t>(per_slab));
  for (const SlabId slab : slabs) {
    for (std::int32_t i = 0; i < per_slab; ++i) {
      entries.push_back(
          static_cast<std::int32_t>((raw(slab) * slab_bytes_ + i * bytes_per_block) / kGranuleBytes));
    }
  }
  return entries;
}

void SlabArena::check_invariants() const {
  std::vector<std::int32_t> owned(models_.size(), 0);
  std::int32_t free = 0;
  for (const Slab& slab : slabs_) {
    if (!slab.owner) {
      ++free;
    } else if (slab.owner->use == SlabUse::kKv) {
      ++owned.at(index(slab.owner->model));
    }
  }
  AIRI_CHECK(free == num_free_) << free << " slabs have no owner, counted " << num_free_;
  for (std::size_t i = 0; i < models_.size(); ++i) {
    AIRI_CHECK(owned[i] == models_[i].num_kv && owned[i] <= models_[i].limits.max)
        << "model " << i << " owns " << owned[i] << " slabs, counted " << models_[i].num_kv;
  }
  AIRI_CHECK(surplus() >= 0) << "minima and weights exceed the arena by " << -surplus();
}

}  // namespace airi
