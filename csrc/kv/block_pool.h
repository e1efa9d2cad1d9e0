#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kv/prefix_index.h"

namespace airi {

// A fixed pool of KV blocks with reference counts, and the cache of full blocks whose
// contents are known. Hands out block ids; never touches KV memory.
//
// A block is ACTIVE (referenced), CACHED (unreferenced, published) or FREE (neither). One
// list holds CACHED and FREE blocks in eviction order: unpublished ones go to the front
// (last in, first out), published ones to the back, so taking from the front takes FREE
// blocks first and then the CACHED block that was released longest ago.
//
// An entry may list several blocks of equal contents (computed side by side); it lives
// until its last block goes, so its descendants stay reachable.
//
// Thread safety: none. One thread owns it.
// Invariant: active + cached + free == capacity; a block is on the list iff its count is 0.
class BlockPool {
 public:
  struct Hit {
    BlockId block{};
    EntrySerial serial{};  // the parent of the next block's key
  };

  // Throws InvalidArgument for a negative capacity or block_size < 1.
  BlockPool(std::int32_t capacity, std::int32_t block_size);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  BlockPool(BlockPool&&) = default;

  [[nodiscard]] std::int32_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::int32_t num_free() const noexcept { return num_free_; }
  [[nodiscard]] std::int32_t num_cached() const noexcept { return num_cached_; }
  [[nodiscard]] std::int32_t num_active() const noexcept { return capacity_ - num_available(); }
  // What try_take can hand out.
  [[nodiscard]] std::int32_t num_available() const noexcept { return num_free_ + num_cached_; }
  [[nodiscard]] std::int64_t num_evictions() const noexcept { return num_evictions_; }

  [[nodiscard]] std::int32_t ref_count(BlockId block) const noexcept { return nodes_[index(block)].refs; }
  [[nodiscard]] bool is_published(BlockId block) const noexcept {
    return nodes_[index(block)].entry != kUnpublished;
  }
  // True iff one holder may write into the block.
  [[nodiscard]] bool is_writable(BlockId block) const noexcept {
    return ref_count(block) == 1 && !is_published(block);
  }

  // The published block with these contents, one in use if there is one. Takes no reference.
  [[nodiscard]] std::optional<Hit> find(const BlockKey& key) const noexcept;

  // True iff `holds` of the published block or of another with the same contents.
  template <class Predicate>
  [[nodiscard]] bool any_twin(BlockId block, Predicate holds) const {
    std::int32_t at = raw(block);
    do {
      if (holds(BlockId{at})) return true;
      at = nodes_[static_cast<std::size_t>(at)].twin_next;
    } while (at != raw(block));
    return false;
  }

  // Takes out.size() blocks with one reference each, or none: on false, `out` is untouched.
  // Evicts CACHED blocks where FREE ones do not suffice. O(out.size()); never allocates.
  [[nodiscard]] bool try_take(std::span<BlockId> out);

  // Adds a reference. REQUIRES: the block is ACTIVE or CACHED.
  void hold(BlockId block);

  // Drops one reference of each block of a request's table, last block first, so that of
  // one chain the deeper block is evicted earlier. REQUIRES: each has a reference.
  void release(std::span<const BlockId> table);

  // Makes the contents of a held block known. REQUIRES: it is unpublished and referenced.
  EntrySerial publish(BlockId block, const BlockKey& key);

  // Forgets the contents of a block, for instance because they turned out to be NaN.
  // Nothing happens to an unpublished one.
  void unpublish(BlockId block);

  // Hashes whose entries went away since the last call, oldest first; recorded only
  // after record_removed().
  void record_removed() noexcept { records_removed_ = true; }
  [[nodiscard]] std::vector<Hash128> take_removed();

  // Throws InvariantError naming the first broken invariant. O(capacity).
  void check_invariants() const;

  // Eviction order, front first; for tests. O(capacity).
  [[nodiscard]] std::vector<BlockId> eviction_order() const;

 private:
  struct Node {
    std::int32_t refs = 0;
    std::int32_t entry = -1;                    // kUnpublished, or the entry that lists the block
    std::int32_t prev = 0, next = 0;            // eviction list; the sentinel is nodes_[capacity_]
    std::int32_t twin_prev = 0, twin_next = 0;  // ring of the blocks of one entry
  };
  static constexpr std::int32_t kUnpublished = -1;

  void link_between(std::int32_t block, std::int32_t prev, std::int32_t next) noexcept;
  void unlink(std::int32_t block) noexcept;
  void drop_reference(BlockId block);
  void leave_ring(std::int32_t block) noexcept;
  void join_ring(std::int32_t block, std::int32_t entry, bool first) noexcept;

  std::int32_t capacity_;
  std::vector<Node> nodes_;
  std::vector<std::int32_t> ring_heads_;  // by entry: the block that hits prefer
  PrefixIndex index_;
  std::int32_t num_free_;
  std::int32_t num_cached_ = 0;
  std::int64_t num_evictions_ = 0;
  bool records_removed_ = false;
  std::vector<Hash128> removed_;
};

}  // namespace airi
