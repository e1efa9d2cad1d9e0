#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kv/block_node.h"

namespace airi {

// The CACHED blocks of a pool in the order of their release, and which of them to evict next: the
// one released longest ago or, where a pool has several slabs, another of the oldest eighth of ages
// that lies in the slab evicted from last, so that what is taken fills slabs instead of being
// strewn over them. There, a block may go before a deeper one of its chain that is as old.
//
// Thread safety: none.
// Invariant: a slab's own list has the order of the whole.
class CachedBlocks {
 public:
  // Links run through `nodes`, which must outlive this and hold every block and one more.
  CachedBlocks(const SlabShape& shape, std::span<BlockNode> nodes);

  [[nodiscard]] std::int32_t size() const noexcept { return size_; }
  [[nodiscard]] std::int32_t size_of(SlabId slab) const noexcept { return sizes_[index(slab)]; }

  // What is added from here on was released together.
  void begin_release() noexcept { ++release_; }
  void push_back(std::int32_t block) noexcept;
  void remove(std::int32_t block) noexcept;

  // The block to evict next; it stays. REQUIRES: size() > 0. O(1).
  [[nodiscard]] std::int32_t choose_victim() noexcept;

  // Oldest first. O(size()).
  [[nodiscard]] std::vector<BlockId> order() const;

  // Throws InvariantError naming the first broken invariant. O(capacity).
  void check_invariants() const;

 private:
  // One in kOldShare of the ages there are counts as old. On replays this costs less than 1 % of
  // the hits of strict order (tests/core/test_slab_eviction.py).
  static constexpr std::uint32_t kOldShare = 8;

  // Where a block stands among the CACHED ones of its slab, in pools of several.
  struct Place {
    std::int32_t prev = 0, next = 0;
    std::uint32_t release = 0;
  };

  [[nodiscard]] std::int32_t oldest() const noexcept { return nodes_.back().next; }
  [[nodiscard]] std::int32_t end_of(std::int32_t slab) const noexcept { return shape_.capacity() + slab; }
  [[nodiscard]] bool is_old(std::int32_t block) const noexcept;

  SlabShape shape_;
  std::span<BlockNode> nodes_;       // the last one is the list's end
  std::vector<Place> places_;        // by block, then one end per slab; empty for a single slab
  std::vector<std::int32_t> sizes_;  // by slab
  std::int32_t size_ = 0;
  std::uint32_t release_ = 0;
  std::optional<std::int32_t> evicted_from_;  // the slab that gave the last victim
};

}  // namespace airi
