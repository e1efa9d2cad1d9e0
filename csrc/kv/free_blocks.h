#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kv/block_node.h"

namespace airi {

// The FREE blocks of a pool, last in first out within a slab, the fullest slab first: so that
// slabs become empty and can be given away. Never knows references or contents.
//
// Fullness has 64 grades: the last is a slab whose blocks are all FREE, the others share the rest
// evenly. Within a grade the slab that entered it last comes first.
//
// A slab that drains keeps its FREE blocks back: they wait for the others and for its removal.
//
// Thread safety: none.
// Invariant: a slab stands in the list of its grade iff it is present, does not drain and has a
// FREE block.
class FreeBlocks {
 public:
  static constexpr std::int32_t kGrades = 64;

  // Links run through `nodes`, which must outlive this and hold every block. Every slab is absent.
  FreeBlocks(const SlabShape& shape, std::span<BlockNode> nodes);

  // What pop() can hand out.
  [[nodiscard]] std::int32_t size() const noexcept { return size_; }
  [[nodiscard]] std::int32_t num_draining() const noexcept { return num_draining_; }
  [[nodiscard]] bool drains(SlabId slab) const noexcept { return slabs_[index(slab)].drains; }
  // FREE blocks of slabs that drain.
  [[nodiscard]] std::int32_t num_kept_back() const noexcept { return num_kept_back_; }
  [[nodiscard]] bool is_present(SlabId slab) const noexcept { return slabs_[index(slab)].is_present; }
  [[nodiscard]] std::int32_t size_of(SlabId slab) const noexcept { return slabs_[index(slab)].size; }

  // All blocks of the slab become FREE, the lowest to be taken first. REQUIRES: it is absent.
  void add_slab(SlabId slab) noexcept;
  // REQUIRES: all blocks of the slab are FREE.
  void remove_slab(SlabId slab) noexcept;

  // From here on none of the slab's blocks is handed out. REQUIRES: it is present.
  void drain_slab(SlabId slab) noexcept;

  // O(1).
  void push(std::int32_t block) noexcept;
  // REQUIRES: size() > 0. O(1).
  [[nodiscard]] std::int32_t pop() noexcept;

  // In the order in which pop() would return them. O(size()).
  [[nodiscard]] std::vector<BlockId> order() const;

  // Throws InvariantError naming the first broken invariant. O(capacity).
  void check_invariants() const;

 private:
  static constexpr std::int32_t kNone = -1;
  struct Slab {
    bool is_present = false;
    bool drains = false;
    std::int32_t size = 0;
    std::int32_t top = kNone;                 // of the stack through BlockNode::next
    std::int32_t prev = kNone, next = kNone;  // in the list of its grade
  };

  void enter_grade(std::int32_t slab) noexcept;
  void leave_grade(std::int32_t slab) noexcept;
  void resize(std::int32_t slab, std::int32_t size) noexcept;

  SlabShape shape_;
  std::span<BlockNode> nodes_;
  std::vector<Slab> slabs_;
  std::vector<std::uint8_t> grade_of_;          // by number of FREE blocks
  std::array<std::int32_t, kGrades> fronts_{};  // by grade: its first slab
  std::uint64_t grades_ = 0;                    // bit g: grade g has a slab
  std::int32_t size_ = 0;
  std::int32_t num_draining_ = 0;  // slabs
  std::int32_t num_kept_back_ = 0;
};

}  // namespace airi
