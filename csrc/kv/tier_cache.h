#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "kv/kv_events.h"
#include "kv/kv_quotas.h"
#include "kv/memory_op.h"
#include "kv/prefix_index.h"
#include "kv/tier_slots.h"
#include "kv/transfers.h"

namespace airi {

struct TierOptions {
  ModelId model{};
  std::int64_t granules_per_block = 1;
  std::int32_t store_on_reuse = 2;  // which reuse of a block copies it to the host; 0: none does
};

struct TierStats {
  std::int64_t host_blocks = 0, disk_blocks = 0;                // slots that hold a copy, or are to
  std::int64_t stores = 0, loads = 0, spills = 0, fetches = 0;  // that went well
  std::int64_t failures = 0;                                    // transfers that did not
  std::int64_t dropped_stores = 0;                              // for want of room
};

// The copies of one model's blocks in host memory and on disk. Decides what is copied to a tier and what
// leaves it, and asks for the transfers; never moves a byte, and never knows requests.
//
// A block is stored on its n-th reuse and when it is evicted from the device, at the price of the host copy
// used longest ago; of those of a tenant that has no more there than its quota, only by the tenant itself.
// Copies that are next to leave the host are spilled to disk beforehand, if there is a
// disk. What finds no room (in a step, or because all slots are busy) is not stored: it is a cache.
//
// Thread safety: none.
// Invariant: an entry has at most one copy per tier; a copy is read only once it is READY, and its slot is
// used again only when no transfer touches it.
class TierCache {
 public:
  // Where a copy of an entry can be read.
  enum class Source : std::uint8_t {
    kNone,
    kHost,
    kDisk,
    kArriving,  // on its way from the disk to the host
  };

  // `device`: the granule where each device block starts; `num_entries`: of the index. What is passed by
  // reference must outlive the cache.
  TierCache(const TierOptions& options, std::vector<std::int32_t> device, std::int32_t num_entries,
            TierSlots host, TierSlots disk, Transfers& transfers, MemoryOps& ops);
  TierCache(const TierCache&) = delete;
  TierCache& operator=(const TierCache&) = delete;

  [[nodiscard]] Source source(EntryId entry) const noexcept;
  // True iff a tier has a copy of the entry or will have one: the entry outlives its last device block.
  [[nodiscard]] bool keeps(EntryId entry) const noexcept {
    return copies(entry).host.has_value() || copies(entry).disk.has_value();
  }

  // The block was hit once more. Stores it, on the n-th time.
  void on_reuse(EntryId entry, BlockId block);
  // The block is about to be overwritten. Stores it.
  void on_evict(EntryId entry, BlockId block) { static_cast<void>(store(entry, block)); }
  // Copies the block to the host unless it is there. False where that cannot be done in this step.
  bool store(EntryId entry, BlockId block);

  [[nodiscard]] bool has_host_copy(EntryId entry) const noexcept { return copies(entry).host.has_value(); }
  // True iff that many more blocks can be stored in this step.
  [[nodiscard]] bool can_store(std::int32_t blocks) const noexcept {
    return blocks <= ops_.room() && blocks <= host_.num_free() + host_.num_idle();
  }

  // Keeps the entry's host copy until it is unpinned. REQUIRES: store(entry) was just true.
  TierPin pin(EntryId entry);
  void unpin(const TierPin& pin) { host_.unpin(pin); }

  // Begins to copy the entry to a device block that nobody else reads. REQUIRES: source(entry) is kHost.
  TransferId load(EntryId entry, BlockId block, std::uint64_t owner);
  // Begins to copy the entry from the disk to the host. Nothing where the host has no slot for it.
  // REQUIRES: source(entry) is kDisk.
  std::optional<TransferId> fetch(EntryId entry);

  // A transfer of this model has ended. True iff what it was to bring may be used.
  bool complete(const Transfer& transfer, TransferEnd end);

  // Takes back a transfer that has been in no step. False where it has, or has ended.
  bool cancel(TransferId id);

  // Drops every copy: the contents cannot be trusted, or are not wanted.
  void forget(EntryId entry);

  // The model goes: drops every copy of every entry, and stores nothing more. Transfers that have begun end.
  void close();
  // True iff no transfer touches a slot, nor will. REQUIRES: close() was called.
  [[nodiscard]] bool is_quiet() const noexcept {
    return host_.num_free() == host_.size() && disk_.num_free() == disk_.size();
  }

  // Tells `sink` from now on which hashes of `index`, whose entries these are, can be read in a tier and
  // which no more. `index` must live until close().
  void send_events_to(const KvEventSink& sink, const PrefixIndex& index) noexcept {
    events_ = sink;
    index_ = &index;
  }
  // A copy belongs to the tenant whose block was stored, and `quotas` tell which that is and how many copies
  // it keeps in each tier whatever others store. They must live until close().
  void protect(const KvQuotas& quotas) noexcept { quotas_ = &quotas; }
  // The group's copies are nobody's from now on. O(entries).
  void disown(QuotaGroup group) noexcept;
  // True iff the tier has a copy of the entry that can be read.
  [[nodiscard]] bool is_readable(EntryId entry, KvTier tier) const noexcept {
    const auto& slot = tier == KvTier::kHost ? copies(entry).host : copies(entry).disk;
    return slot && (tier == KvTier::kHost ? host_ : disk_).is_ready(*slot);
  }

  // Spills what is next to leave the host. Call once per step.
  void spill_oldest();

  // Entries whose last copy went away since the last call. They are to go from the index if no device block
  // has them either.
  [[nodiscard]] std::vector<EntryId>& lost() noexcept { return lost_; }

  [[nodiscard]] const TierSlots& host() const noexcept { return host_; }
  [[nodiscard]] const TierSlots& disk() const noexcept { return disk_; }
  [[nodiscard]] std::int64_t block_bytes() const noexcept;
  [[nodiscard]] const Transfers& transfers() const noexcept { return transfers_; }
  [[nodiscard]] Transfers& transfers() noexcept { return transfers_; }
  [[nodiscard]] TierStats stats() const noexcept;
  // One mention per transfer. O(pending transfers).
  [[nodiscard]] std::vector<BlockId> blocks_being_loaded() const;

  void check_invariants() const;

 private:
  struct Copies {
    std::optional<TierSlot> host;
    std::optional<TierSlot> disk;
    std::int32_t reuses = 0;
    QuotaGroup owner = kNoQuota;  // while there is a copy
  };
  using Counts = std::array<std::int32_t, QuotaCounts::kMaxTenants + 1>;  // by owner

  [[nodiscard]] Copies& copies(EntryId entry) noexcept { return copies_[index(entry)]; }
  [[nodiscard]] const Copies& copies(EntryId entry) const noexcept { return copies_[index(entry)]; }
  [[nodiscard]] std::optional<EntryId> choose_victim(TierSlots& slots, const Counts& owned, EntryId entry);
  [[nodiscard]] std::optional<TierSlot> take_host_slot(EntryId entry);
  [[nodiscard]] std::optional<TierSlot> take_disk_slot(EntryId entry);
  void drop_host(EntryId entry);
  void drop_disk(EntryId entry);
  void note_loss(EntryId entry);
  void tell_stored(EntryId entry, KvTier tier) const noexcept;
  void tell_removed(EntryId entry, KvTier tier) const noexcept;
  [[nodiscard]] bool others_have(EntryId entry, KvTier tier) const noexcept;
  bool spill(TierSlot slot);
  void count(MemoryOpKind kind, TransferEnd end) noexcept;
  [[nodiscard]] Transfer transfer(MemoryOpKind kind) const noexcept;
  [[nodiscard]] std::int64_t granule(TierSlot host_slot) const noexcept { return host_.granule(host_slot); }

  TierOptions options_;
  std::vector<std::int32_t> device_;  // by block
  TierSlots host_;
  TierSlots disk_;
  Transfers& transfers_;
  MemoryOps& ops_;
  std::vector<Copies> copies_;  // by entry
  std::vector<EntryId> lost_;
  std::int32_t spill_window_;  // spills at a time: fewer after failures
  TierStats counters_;
  bool is_closed_ = false;
  KvEventSink events_;
  const PrefixIndex* index_ = nullptr;
  const KvQuotas* quotas_ = nullptr;
  Counts in_host_{};
  Counts on_disk_{};
};

}  // namespace airi
