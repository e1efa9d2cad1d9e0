#include "kv/cached_blocks.h"

#include "base/check.h"

namespace airi {

CachedBlocks::CachedBlocks(const SlabShape& shape, std::span<BlockNode> nodes)
    : shape_(shape), nodes_(nodes), sizes_(static_cast<std::size_t>(shape.num_slabs)) {
  nodes_.back().prev = nodes_.back().next = shape_.capacity();
  if (shape_.is_single()) return;
  places_.resize(static_cast<std::size_t>(shape_.capacity()) + sizes_.size());
  for (std::int32_t slab = 0; slab < shape_.num_slabs; ++slab) {
    Place& end = places_[static_cast<std::size_t>(end_of(slab))];
    end.prev = end.next = end_of(slab);
  }
}

void CachedBlocks::push_back(std::int32_t block) noexcept {
  BlockNode& node = nodes_[static_cast<std::size_t>(block)];
  node.prev = nodes_.back().prev;
  node.next = shape_.capacity();
  nodes_[static_cast<std::size_t>(node.prev)].next = block;
  nodes_.back().prev = block;
  ++size_;
  const std::int32_t slab = raw(shape_.slab_of(block));
  ++sizes_[static_cast<std::size_t>(slab)];
  if (shape_.is_single()) return;
  Place& end = places_[static_cast<std::size_t>(end_of(slab))];
  places_[static_cast<std::size_t>(block)] = {.prev = end.prev, .next = end_of(slab), .release = release_};
  places_[static_cast<std::size_t>(end.prev)].next = block;
  end.prev = block;
}

void CachedBlocks::remove(std::int32_t block) noexcept {
  const BlockNode& node = nodes_[static_cast<std::size_t>(block)];
  nodes_[static_cast<std::size_t>(node.prev)].next = node.next;
  nodes_[static_cast<std::size_t>(node.next)].prev = node.prev;
  --size_;
  --sizes_[index(shape_.slab_of(block))];
  if (shape_.is_single()) return;
  const Place& place = places_[static_cast<std::size_t>(block)];
  places_[static_cast<std::size_t>(place.prev)].next = place.next;
  places_[static_cast<std::size_t>(place.next)].prev = place.prev;
}

bool CachedBlocks::is_old(std::int32_t block) const noexcept {
  const std::uint32_t first = places_[static_cast<std::size_t>(oldest())].release;
  const std::uint32_t own = places_[static_cast<std::size_t>(block)].release;
  return own - first <= (release_ - first) / kOldShare;
}

std::int32_t CachedBlocks::choose_victim() noexcept {
  if (shape_.is_single()) return oldest();
  if (evicted_from_) {
    const std::int32_t block = places_[static_cast<std::size_t>(end_of(*evicted_from_))].next;
    if (block < shape_.capacity() && is_old(block)) return block;
  }
  evicted_from_ = raw(shape_.slab_of(oldest()));
  return oldest();
}

std::vector<BlockId> CachedBlocks::order() const {
  std::vector<BlockId> order;
  for (std::int32_t at = oldest(); at != shape_.capacity(); at = nodes_[static_cast<std::size_t>(at)].next) {
    order.push_back(BlockId{at});
    AIRI_CHECK(order.size() < nodes_.size()) << "the list of CACHED blocks is a loop";
  }
  return order;
}

void CachedBlocks::check_invariants() const {
  std::vector<std::vector<std::int32_t>> by_slab(sizes_.size());
  const std::vector<BlockId> all = order();
  for (const BlockId block : all) by_slab[index(shape_.slab_of(raw(block)))].push_back(raw(block));
  AIRI_CHECK(static_cast<std::int32_t>(all.size()) == size_)
      << "the list holds " << all.size() << " CACHED blocks, counted " << size_;
  for (std::int32_t slab = 0; slab < shape_.num_slabs; ++slab) {
    const std::vector<std::int32_t>& blocks = by_slab[static_cast<std::size_t>(slab)];
    AIRI_CHECK(static_cast<std::int32_t>(blocks.size()) == sizes_[static_cast<std::size_t>(slab)])
        << "slab " << slab << " holds " << blocks.size() << " CACHED blocks";
    if (shape_.is_single()) return;
    std::int32_t at = end_of(slab);
    for (const std::int32_t block : blocks) {
      at = places_[static_cast<std::size_t>(at)].next;
      AIRI_CHECK(at == block) << "slab " << slab << " lists block " << at << " where " << block << " stands";
    }
    AIRI_CHECK(places_[static_cast<std::size_t>(at)].next == end_of(slab)) << "slab " << slab;
  }
}

}  // namespace airi
