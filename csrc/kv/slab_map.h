#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"

namespace airi {

// Block-table entries count granules of this many bytes from the start of the arena.
inline constexpr std::int64_t kGranuleBytes = 4096;

// Who owns which slab of one device's arena. Hands out slabs and computes where blocks
// lie; never touches the arena's memory.
//
// Thread safety: none.
// Invariant: every slab is FREE or owned by exactly one model; blocks never cross a slab.
class SlabMap {
 public:
  // Throws InvalidArgument unless slab_bytes is a positive multiple of the granule, the arena
  // holds at least one slab, and every offset in granules fits 31 bits.
  SlabMap(std::int64_t arena_bytes, std::int64_t slab_bytes);

  [[nodiscard]] std::int32_t num_slabs() const noexcept { return static_cast<std::int32_t>(owners_.size()); }
  [[nodiscard]] std::int32_t num_free() const noexcept { return num_free_; }
  [[nodiscard]] std::int64_t slab_bytes() const noexcept { return slab_bytes_; }
  [[nodiscard]] std::optional<ModelId> owner(SlabId slab) const { return owners_.at(index(slab)); }

  // Gives `model` the lowest `count` FREE slabs, or none: false where there are too few.
  [[nodiscard]] bool try_take(ModelId model, std::int32_t count);

  // REQUIRES: `model` owns `slab`.
  void give_back(ModelId model, SlabId slab);

  // Slabs of `model`, ascending.
  [[nodiscard]] std::vector<SlabId> owned_by(ModelId model) const;

  // The block-table entries of every block that fits `slabs`, each slab packed from its start.
  // Throws InvalidArgument unless bytes_per_block is a positive multiple of the granule that
  // fits a slab.
  [[nodiscard]] std::vector<std::int32_t> block_entries(std::span<const SlabId> slabs,
                                                        std::int64_t bytes_per_block) const;

  // Throws InvariantError naming the first broken invariant.
  void check_invariants() const;

 private:
  std::int64_t slab_bytes_;
  std::vector<std::optional<ModelId>> owners_;
  std::int32_t num_free_;
};

}  // namespace airi
