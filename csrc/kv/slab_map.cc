#include "kv/slab_map.h"

#include <algorithm>
#include <limits>
#include <string>

#include "base/check.h"

namespace airi {

SlabMap::SlabMap(std::int64_t arena_bytes, std::int64_t slab_bytes) : slab_bytes_(slab_bytes) {
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
  owners_.resize(static_cast<std::size_t>(arena_bytes / slab_bytes));
  num_free_ = num_slabs();
}

bool SlabMap::try_take(ModelId model, std::int32_t count) {
  AIRI_CHECK(count >= 0) << "count " << count;
  if (count > num_free_) return false;
  num_free_ -= count;
  for (auto owner = owners_.begin(); count > 0; ++owner) {
    if (owner->has_value()) continue;
    *owner = model;
    --count;
  }
  return true;
}

void SlabMap::give_back(ModelId model, SlabId slab) {
  std::optional<ModelId>& owner = owners_.at(index(slab));
  AIRI_CHECK(owner == model) << "slab " << raw(slab) << " is not owned by model " << raw(model);
  owner.reset();
  ++num_free_;
}

std::vector<SlabId> SlabMap::owned_by(ModelId model) const {
  std::vector<SlabId> slabs;
  for (std::int32_t i = 0; i < num_slabs(); ++i) {
    if (owners_[static_cast<std::size_t>(i)] == model) slabs.push_back(SlabId{i});
  }
  return slabs;
}

std::vector<std::int32_t> SlabMap::block_entries(std::span<const SlabId> slabs,
                                                 std::int64_t bytes_per_block) const {
  if (bytes_per_block <= 0 || bytes_per_block % kGranuleBytes != 0 || bytes_per_block > slab_bytes_) {
    throw InvalidArgument("bytes_per_block must be a positive multiple of " + std::to_string(kGranuleBytes) +
                          " that fits a slab of " + std::to_string(slab_bytes_) + " bytes, got " +
                          std::to_string(bytes_per_block));
  }
  std::vector<std::int32_t> entries;
  for (const SlabId slab : slabs) {
    const std::int64_t start = raw(slab) * slab_bytes_;
    for (std::int64_t at = 0; at + bytes_per_block <= slab_bytes_; at += bytes_per_block) {
      entries.push_back(static_cast<std::int32_t>((start + at) / kGranuleBytes));
    }
  }
  return entries;
}

void SlabMap::check_invariants() const {
  const auto free = std::count(owners_.begin(), owners_.end(), std::nullopt);
  AIRI_CHECK(free == num_free_) << free << " slabs have no owner, counted " << num_free_;
}

}  // namespace airi
