#include "kv/free_blocks.h"

#include <bit>

#include "base/check.h"

namespace airi {

FreeBlocks::FreeBlocks(const SlabShape& shape, std::span<BlockNode> nodes)
    : shape_(shape),
      nodes_(nodes),
      slabs_(static_cast<std::size_t>(shape.num_slabs)),
      grade_of_(static_cast<std::size_t>(shape.blocks_per_slab) + 1) {
  fronts_.fill(kNone);
  const std::int64_t most = shape.blocks_per_slab;
  for (std::int64_t free = 1; free < most; ++free) {
    grade_of_[static_cast<std::size_t>(free)] = static_cast<std::uint8_t>((free - 1) * (kGrades - 1) / most);
  }
  grade_of_.back() = kGrades - 1;
}

void FreeBlocks::enter_grade(std::int32_t slab) noexcept {
  Slab& entering = slabs_[static_cast<std::size_t>(slab)];
  const std::uint8_t grade = grade_of_[static_cast<std::size_t>(entering.size)];
  entering.prev = kNone;
  entering.next = fronts_[grade];
  if (entering.next != kNone) slabs_[static_cast<std::size_t>(entering.next)].prev = slab;
  fronts_[grade] = slab;
  grades_ |= std::uint64_t{1} << grade;
}

void FreeBlocks::leave_grade(std::int32_t slab) noexcept {
  const Slab& leaving = slabs_[static_cast<std::size_t>(slab)];
  const std::uint8_t grade = grade_of_[static_cast<std::size_t>(leaving.size)];
  if (leaving.next != kNone) slabs_[static_cast<std::size_t>(leaving.next)].prev = leaving.prev;
  if (leaving.prev != kNone) {
    slabs_[static_cast<std::size_t>(leaving.prev)].next = leaving.next;
    return;
  }
  fronts_[grade] = leaving.next;
  if (leaving.next == kNone) grades_ &= ~(std::uint64_t{1} << grade);
}

void FreeBlocks::resize(std::int32_t slab, std::int32_t size) noexcept {
  Slab& resized = slabs_[static_cast<std::size_t>(slab)];
  size_ += size - resized.size;
  const std::uint8_t before = grade_of_[static_cast<std::size_t>(resized.size)];
  const bool stays = resized.size > 0 && size > 0 && before == grade_of_[static_cast<std::size_t>(size)];
  if (!stays && resized.size > 0) leave_grade(slab);
  resized.size = size;
  if (!stays && size > 0) enter_grade(slab);
}

void FreeBlocks::add_slab(SlabId slab) noexcept {
  Slab& added = slabs_[index(slab)];
  added.is_present = true;
  const std::int32_t first = shape_.first_block(slab);
  for (std::int32_t block = first + shape_.blocks_per_slab; block-- > first;) {
    nodes_[static_cast<std::size_t>(block)].next = added.top;
    added.top = block;
  }
  if (shape_.blocks_per_slab > 0) resize(raw(slab), shape_.blocks_per_slab);
}

void FreeBlocks::remove_slab(SlabId slab) noexcept {
  Slab& removed = slabs_[index(slab)];
  if (removed.drains) {
    --num_draining_;
    num_kept_back_ -= removed.size;
  } else {
    resize(raw(slab), 0);
  }
  removed = Slab{};
}

void FreeBlocks::drain_slab(SlabId slab) noexcept {
  Slab& draining = slabs_[index(slab)];
  const std::int32_t size = draining.size;
  resize(raw(slab), 0);
  draining.size = size;
  draining.drains = true;
  ++num_draining_;
  num_kept_back_ += size;
}

void FreeBlocks::push(std::int32_t block) noexcept {
  const SlabId id = shape_.slab_of(block);
  Slab& slab = slabs_[index(id)];
  nodes_[static_cast<std::size_t>(block)].next = slab.top;
  slab.top = block;
  if (slab.drains) {
    ++slab.size;
    ++num_kept_back_;
    return;
  }
  resize(raw(id), slab.size + 1);
}

std::int32_t FreeBlocks::pop() noexcept {
  const std::int32_t id = fronts_[static_cast<std::size_t>(std::countr_zero(grades_))];
  Slab& slab = slabs_[static_cast<std::size_t>(id)];
  const std::int32_t block = slab.top;
  slab.top = nodes_[static_cast<std::size_t>(block)].next;
  resize(id, slab.size - 1);
  return block;
}

std::vector<BlockId> FreeBlocks::order() const {
  std::vector<BlockId> order;
  for (const std::int32_t front : fronts_) {
    for (std::int32_t slab = front; slab != kNone; slab = slabs_[static_cast<std::size_t>(slab)].next) {
      for (std::int32_t at = slabs_[static_cast<std::size_t>(slab)].top; at != kNone;
           at = nodes_[static_cast<std::size_t>(at)].next) {
        order.push_back(BlockId{at});
        AIRI_CHECK(order.size() <= nodes_.size()) << "the FREE blocks of slab " << slab << " are a loop";
      }
    }
  }
  return order;
}

void FreeBlocks::check_invariants() const {
  std::vector<std::int32_t> sizes(slabs_.size(), 0);
  for (const BlockId block : order()) ++sizes[index(shape_.slab_of(raw(block)))];
  std::int32_t total = 0;
  std::int32_t kept_back = 0;
  for (std::size_t i = 0; i < slabs_.size(); ++i) {
    if (slabs_[i].drains) {
      kept_back += slabs_[i].size;
      continue;
    }
    AIRI_CHECK(sizes[i] == slabs_[i].size)
        << "slab " << i << " lists " << sizes[i] << " FREE blocks, counted " << slabs_[i].size;
    AIRI_CHECK(slabs_[i].is_present || sizes[i] == 0) << "absent slab " << i << " has FREE blocks";
    total += sizes[i];
  }
  AIRI_CHECK(kept_back == num_kept_back_) << "draining slabs have " << kept_back << " FREE blocks";
  AIRI_CHECK(total == size_) << "slabs list " << total << " FREE blocks, counted " << size_;
}

}  // namespace airi
