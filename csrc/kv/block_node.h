#pragma once

#include <cstdint>

#include "base/ids.h"

namespace airi {

// How the blocks of one pool lie in slabs: block = slab * blocks_per_slab + place.
struct SlabShape {
  std::int32_t num_slabs = 0;
  std::int32_t blocks_per_slab = 0;

  [[nodiscard]] std::int32_t capacity() const noexcept { return num_slabs * blocks_per_slab; }
  [[nodiscard]] bool is_single() const noexcept { return num_slabs == 1; }
  [[nodiscard]] SlabId slab_of(std::int32_t block) const noexcept {
    return is_single() ? SlabId{0} : SlabId{block / blocks_per_slab};
  }
  [[nodiscard]] std::int32_t first_block(SlabId slab) const noexcept { return raw(slab) * blocks_per_slab; }
};

// What a pool keeps of one block, in one cache line: its lists share the links of a block, which
// stands in one of them at most.
struct BlockNode {
  std::int32_t refs = 0;
  std::int32_t entry = -1;                    // kUnpublished, or the entry that lists the block
  std::int32_t prev = 0, next = 0;            // of FreeBlocks (next alone) or CachedBlocks
  std::int32_t twin_prev = 0, twin_next = 0;  // ring of the blocks of one entry
};
inline constexpr std::int32_t kUnpublished = -1;

}  // namespace airi
