#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kv/block_node.h"
#include "kv/cached_blocks.h"
#include "kv/free_blocks.h"
#include "kv/kv_events.h"
#include "kv/kv_quotas.h"
#include "kv/prefix_index.h"

namespace airi {

class TierCache;

// A pool of KV blocks with reference counts, and the cache of full blocks whose contents are
// known. Hands out block ids; never touches KV memory.
//
// Blocks lie in slabs, which may be added and removed; those of a slab that the pool does not
// have are ABSENT. Others are ACTIVE (referenced), CACHED (unreferenced, published) or FREE
// (neither). FREE blocks are taken first, last in first out, of the fullest slab; then CACHED
// ones, nearly in the order of their release (see kv/cached_blocks.h; exactly in a single slab).
//
// An entry may list several blocks of equal contents (computed side by side); it lives
// until its last block goes, and the last copy in a tier, so its descendants stay reachable.
//
// Thread safety: none. One thread owns it.
// Invariant: active + cached + free == num_present; a block is CACHED or FREE only if its count
// is 0 and its slab present.
class BlockPool {
 public:
  struct Hit {
    BlockId block{};
    EntrySerial serial{};  // the parent of the next block's key
  };

  // What is known of some contents, on the device or not.
  struct Known {
    EntryId entry{};
    EntrySerial serial{};
  };

  // One slab that is there from the start. Throws InvalidArgument for a negative capacity or
  // block_size < 1.
  BlockPool(std::int32_t capacity, std::int32_t block_size);
  // Every slab is absent at first. Throws InvalidArgument for a shape without blocks, or with
  // 2^31 of them.
  BlockPool(const SlabShape& shape, std::int32_t block_size);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  BlockPool(BlockPool&&) = default;

  // Ids are below it, absent ones included.
  [[nodiscard]] std::int32_t capacity() const noexcept { return shape_.capacity(); }
  [[nodiscard]] const SlabShape& shape() const noexcept { return shape_; }
  [[nodiscard]] std::int32_t num_present() const noexcept { return num_slabs_ * shape_.blocks_per_slab; }
  [[nodiscard]] std::int32_t num_free() const noexcept { return free_.size(); }
  [[nodiscard]] std::int32_t num_cached() const noexcept { return cached_.size() + quotas_.num_cached(); }
  [[nodiscard]] std::int32_t num_active() const noexcept {
    return num_present() - num_available() - free_.num_kept_back();
  }
  // What try_take can hand out.
  [[nodiscard]] std::int32_t num_available() const noexcept { return num_free() + num_cached(); }
  [[nodiscard]] std::int64_t num_evictions() const noexcept { return num_evictions_; }

  [[nodiscard]] std::int32_t ref_count(BlockId block) const noexcept { return nodes_[index(block)].refs; }
  [[nodiscard]] bool is_published(BlockId block) const noexcept {
    return nodes_[index(block)].entry != kUnpublished;
  }
  // True iff one holder may write into the block.
  [[nodiscard]] bool is_writable(BlockId block) const noexcept {
    return ref_count(block) == 1 && !is_published(block);
  }

  [[nodiscard]] std::int32_t num_slabs() const noexcept { return num_slabs_; }
  [[nodiscard]] bool has_slab(SlabId slab) const noexcept { return free_.is_present(slab); }
  [[nodiscard]] std::int32_t num_cached_in(SlabId slab) const noexcept {
    return cached_.size_of(slab) + quotas_.num_cached_in(slab);
  }
  // REQUIRES: has_slab(slab).
  [[nodiscard]] std::int32_t num_active_in(SlabId slab) const noexcept {
    return shape_.blocks_per_slab - free_.size_of(slab) - num_cached_in(slab);
  }

  // The blocks of the slab become FREE. REQUIRES: !has_slab(slab). O(blocks of the slab).
  void add_slab(SlabId slab);
  // The blocks of the slab become ABSENT; CACHED ones are evicted. REQUIRES: has_slab(slab) and
  // none of its blocks is ACTIVE. O(blocks of the slab).
  void remove_slab(SlabId slab);

  // No block of the slab is handed out or cached any more, until it is removed: CACHED ones are
  // evicted, others become FREE for nobody as they are released. REQUIRES: has_slab(slab) and not
  // drains(slab). O(blocks of the slab).
  void drain_slab(SlabId slab);
  [[nodiscard]] bool drains(SlabId slab) const noexcept { return free_.drains(slab); }
  [[nodiscard]] std::int32_t num_draining() const noexcept { return free_.num_draining(); }
  // True iff a release of its last reference would make the block available.
  [[nodiscard]] bool returns(BlockId block) const noexcept {
    return free_.num_draining() == 0 || !free_.drains(shape_.slab_of(raw(block)));
  }

  // From now on entries live on while `tiers` has a copy of them, of which there are at most `num_copies`; it
  // is told what is evicted. REQUIRES: nothing is published; `tiers` outlives the pool.
  // Events go where they go now.
  void attach(TierCache& tiers, std::int32_t num_copies);
  [[nodiscard]] TierCache* tiers() const noexcept { return tiers_; }

  // The published block with these contents, one in use if there is one. Takes no reference.
  [[nodiscard]] std::optional<Hit> find(const BlockKey& key) const noexcept;
  // As find, also where no block has them, but a tier.
  [[nodiscard]] std::optional<Known> find_known(const BlockKey& key) const noexcept;
  // The entry of a published block.
  [[nodiscard]] EntryId entry_of(BlockId block) const noexcept { return EntryId{nodes_[index(block)].entry}; }
  // True iff the entry is still that of find_known().
  [[nodiscard]] bool is_same(const Known& known) const noexcept;
  // Drops the entries that tiers have lost and no block has. Call after a tier may have lost some.
  void drop_lost();

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

  // Grows whenever something is no longer to be found on the device.
  [[nodiscard]] std::uint64_t num_forgotten() const noexcept { return num_forgotten_; }

  // Takes out.size() blocks with one reference each, or none: on false, `out` is untouched.
  // Evicts CACHED blocks where FREE ones do not suffice. O(out.size()); never allocates.
  [[nodiscard]] bool try_take(std::span<BlockId> out);
  // As try_take, for a tenant: evicts nothing that is protected for others, and none of what they were
  // promised, `outstanding` blocks in all without those that are taken.
  [[nodiscard]] bool try_take_for(QuotaGroup group, std::int32_t outstanding, std::span<BlockId> out);

  [[nodiscard]] const KvQuotas& quotas() const noexcept { return quotas_; }
  [[nodiscard]] KvQuotas& quotas() noexcept { return quotas_; }
  // Ends a tenant's quota, if it has one: its blocks are nobody's, CACHED ones as if released just now.
  void end_quota(TenantId tenant);

  // Adds a reference. REQUIRES: the block is ACTIVE or CACHED.
  void hold(BlockId block);

  // Drops one reference of each block of a request's table, last block first, so that of
  // one chain the deeper block is evicted earlier. REQUIRES: each has a reference.
  void release(std::span<const BlockId> table);

  // Before publish() for many blocks: fetches what it looks up by hash.
  void prefetch(const Hash128& hash) const noexcept { index_.prefetch(hash); }
  // Makes the contents of a held block known. REQUIRES: it is unpublished and referenced.
  EntrySerial publish(BlockId block, const BlockKey& key);

  // Forgets the contents of a block, for instance because they turned out to be NaN.
  // Nothing happens to an unpublished one.
  void unpublish(BlockId block);

  // Tells `sink` from now on which hashes are stored on the device, and which are removed; and, once a cache
  // of tiers is attached, the same of those.
  void send_events_to(const KvEventSink& sink) noexcept { events_ = sink; }
  // Every hash in the pool and its tiers as an event, each once per tier, parents first. O(capacity log
  // capacity).
  [[nodiscard]] std::vector<KvEvent> stored_hashes() const;

  // Throws InvariantError naming the first broken invariant. O(capacity).
  void check_invariants() const;

  // FREE blocks in the order in which they will be taken, then CACHED ones in that of their
  // release; for tests. O(capacity).
  [[nodiscard]] std::vector<BlockId> eviction_order() const;

 private:
  void drop_reference(BlockId block);
  void forget(BlockId block);
  void evict(BlockId block);
  void evict_slab(SlabId slab);
  void offer_to_tiers(BlockId block);
  [[nodiscard]] bool others_are_on_device(EntryId entry) const noexcept;
  [[nodiscard]] bool is_readable(EntryId entry, KvTier tier) const noexcept;
  void check_blocks() const;
  void leave_ring(std::int32_t block) noexcept;
  void join_ring(std::int32_t block, std::int32_t entry, bool first) noexcept;
  void erase_entry(EntryId entry);
  void cache(BlockId block) noexcept;
  void uncache(BlockId block) noexcept;
  void set_free(BlockId block) noexcept;

  static constexpr std::int32_t kNoEntry = -1;
  static constexpr std::int32_t kInTiersOnly = -2;

  SlabShape shape_;
  std::vector<BlockNode> nodes_;  // by block, and the end of a list
  FreeBlocks free_;
  CachedBlocks cached_;  // those that belong to no tenant with a quota
  KvQuotas quotas_;
  std::vector<std::int32_t> ring_heads_;  // by entry: the block that hits prefer, or one of those below
  PrefixIndex index_;
  std::int32_t num_slabs_ = 0;
  std::int64_t num_evictions_ = 0;
  std::uint64_t num_forgotten_ = 0;
  KvEventSink events_;
  TierCache* tiers_ = nullptr;
};

}  // namespace airi
