#include "kv/tier_cache.h"

#include <algorithm>

#include "base/check.h"
#include "kv/slab_arena.h"

namespace airi {
namespace {

// This many copies that are next to leave the host are on disk already, if they are not too large a part of
// it.
constexpr std::int32_t kMostSpills = 64;
constexpr std::int32_t kSpilledShare = 8;

}  // namespace

TierCache::TierCache(const TierOptions& options, std::vector<std::int32_t> device, std::int32_t num_entries,
                     TierSlots host, TierSlots disk, Transfers& transfers, MemoryOps& ops)
    : options_(options),
      device_(std::move(device)),
      host_(std::move(host)),
      disk_(std::move(disk)),
      transfers_(transfers),
      ops_(ops),
      copies_(static_cast<std::size_t>(num_entries)),
      spill_window_(kMostSpills) {}

std::int64_t TierCache::block_bytes() const noexcept { return options_.granules_per_block * kGranuleBytes; }

Transfer TierCache::transfer(MemoryOpKind kind) const noexcept {
  Transfer transfer;
  transfer.kind = kind;
  transfer.model = options_.model;
  transfer.bytes = block_bytes();
  return transfer;
}

TierCache::Source TierCache::source(EntryId entry) const noexcept {
  const Copies& own = copies(entry);
  if (own.host && host_.is_ready(*own.host)) return Source::kHost;
  if (!own.disk || !disk_.is_ready(*own.disk)) return Source::kNone;
  return own.host ? Source::kArriving : Source::kDisk;
}

void TierCache::note_loss(EntryId entry) {
  if (keeps(entry)) return;
  copies(entry).reuses = 0;
  lost_.push_back(entry);
}

// True iff another entry of the same hash has a copy there that can be read.
bool TierCache::others_have(EntryId entry, KvTier tier) const noexcept {
  return index_->any_namesake(entry, [=, this](EntryId other) { return is_readable(other, tier); });
}

void TierCache::tell_stored(EntryId entry, KvTier tier) const noexcept {
  if (!events_.enabled() || others_have(entry, tier)) return;
  events_.stored(tier, index_->hash(entry), index_->parent_hash(entry));
}

void TierCache::tell_removed(EntryId entry, KvTier tier) const noexcept {
  if (!events_.enabled() || !is_readable(entry, tier) || others_have(entry, tier)) return;
  events_.removed(tier, index_->hash(entry));
}

void TierCache::drop_host(EntryId entry) {
  tell_removed(entry, KvTier::kHost);
  host_.drop(*copies(entry).host);
  --in_host_[index(copies(entry).owner)];
  copies(entry).host.reset();
  note_loss(entry);
}

void TierCache::drop_disk(EntryId entry) {
  tell_removed(entry, KvTier::kDisk);
  disk_.drop(*copies(entry).disk);
  --on_disk_[index(copies(entry).owner)];
  copies(entry).disk.reset();
  note_loss(entry);
}

void TierCache::forget(EntryId entry) {
  if (copies(entry).host) drop_host(entry);
  if (copies(entry).disk) drop_disk(entry);
  copies(entry).reuses = 0;
}

void TierCache::close() {
  is_closed_ = true;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(copies_.size()); ++i) {
    if (keeps(EntryId{i})) forget(EntryId{i});
  }
  events_ = {};
  index_ = nullptr;
  quotas_ = nullptr;
}

void TierCache::disown(QuotaGroup group) noexcept {
  for (Copies& own : copies_) {
    if (own.owner == group) own.owner = kNoQuota;
  }
  for (Counts* const counts : {&in_host_, &on_disk_}) {
    (*counts)[index(kNoQuota)] += std::exchange((*counts)[index(group)], 0);
  }
}

// The entry whose copy goes for one of `entry`. A copy that is kept for another tenant comes to stand with
// the newest, so that it is looked at once in a round.
std::optional<EntryId> TierCache::choose_victim(TierSlots& slots, const Counts& owned, EntryId entry) {
  for (std::int32_t left = slots.num_idle(); left > 0; --left) {
    const TierSlot oldest = *slots.oldest();
    const EntryId victim = *slots.entry(oldest);
    const QuotaGroup owner = copies(victim).owner;
    const bool is_kept = quotas_ != nullptr && owner != kNoQuota && owner != copies(entry).owner &&
                         owned[index(owner)] <= quotas_->counts()[owner].wanted;
    if (!is_kept) return victim;
    slots.make_newest(oldest);
  }
  return std::nullopt;
}

std::optional<TierSlot> TierCache::take_host_slot(EntryId entry) {
  if (host_.num_free() == 0) {
    const auto victim = choose_victim(host_, in_host_, entry);
    if (victim) drop_host(*victim);
  }
  const auto slot = host_.try_begin_write(entry);
  if (!slot) return slot;
  copies(entry).host = slot;
  ++in_host_[index(copies(entry).owner)];
  return slot;
}

std::optional<TierSlot> TierCache::take_disk_slot(EntryId entry) {
  if (disk_.num_free() == 0) {
    const auto victim = choose_victim(disk_, on_disk_, entry);
    if (victim) drop_disk(*victim);
  }
  const auto slot = disk_.try_begin_write(entry);
  if (!slot) return slot;
  copies(entry).disk = slot;
  ++on_disk_[index(copies(entry).owner)];
  return slot;
}

void TierCache::on_reuse(EntryId entry, BlockId block) {
  Copies& own = copies(entry);
  if (own.reuses >= options_.store_on_reuse) return;
  ++own.reuses;
  if (own.reuses == options_.store_on_reuse) static_cast<void>(store(entry, block));
}

bool TierCache::store(EntryId entry, BlockId block) {
  if (copies(entry).host) {
    if (host_.is_idle(*copies(entry).host)) host_.make_newest(*copies(entry).host);
    return true;
  }
  if (!keeps(entry)) copies(entry).owner = quotas_ == nullptr ? kNoQuota : quotas_->owner(raw(block));
  const bool may = !is_closed_ && ops_.room() > 0;
  const auto slot = may ? take_host_slot(entry) : std::nullopt;
  if (!slot) {
    ++counters_.dropped_stores;
    return false;
  }
  Transfer store = transfer(MemoryOpKind::kStore);
  store.host = slot;
  const bool added = ops_.try_add({.kind = store.kind,
                                   .id = transfers_.begin(store),
                                   .from = device_[index(block)],
                                   .to = granule(*slot),
                                   .granules = options_.granules_per_block});
  AIRI_DCHECK(added);
  return true;
}

TierPin TierCache::pin(EntryId entry) {
  AIRI_CHECK(copies(entry).host.has_value()) << "entry " << raw(entry) << " has no host copy to pin";
  return host_.pin(*copies(entry).host);
}

TransferId TierCache::load(EntryId entry, BlockId block, std::uint64_t owner) {
  AIRI_CHECK(source(entry) == Source::kHost) << "entry " << raw(entry) << " cannot be loaded";
  Transfer load = transfer(MemoryOpKind::kLoad);
  load.host = copies(entry).host;
  load.block = block;
  load.owner = owner;
  host_.begin_read(*load.host);
  const TransferId id = transfers_.begin(load);
  ops_.add({.kind = load.kind,
            .id = id,
            .from = granule(*load.host),
            .to = device_[index(block)],
            .granules = options_.granules_per_block});
  return id;
}

std::optional<TransferId> TierCache::fetch(EntryId entry) {
  AIRI_CHECK(source(entry) == Source::kDisk) << "entry " << raw(entry) << " cannot be fetched";
  // It is not evicted to make room for itself.
  disk_.begin_read(*copies(entry).disk);
  const auto slot = take_host_slot(entry);
  if (!slot) {
    disk_.end_read(*copies(entry).disk);
    return std::nullopt;
  }
  Transfer fetch = transfer(MemoryOpKind::kFetch);
  fetch.host = slot;
  fetch.disk = copies(entry).disk;
  const TransferId id = transfers_.begin(fetch);
  ops_.add({.kind = fetch.kind,
            .id = id,
            .from = disk_.granule(*fetch.disk),
            .to = granule(*slot),
            .granules = options_.granules_per_block});
  return id;
}

// False where the disk has no slot for it, or the step no room.
bool TierCache::spill(TierSlot slot) {
  const EntryId entry = *host_.entry(slot);
  if (ops_.room() == 0) return false;
  Transfer spill = transfer(MemoryOpKind::kSpill);
  spill.host = slot;
  spill.disk = take_disk_slot(entry);
  if (!spill.disk) return false;
  host_.begin_read(slot);
  ops_.add({.kind = spill.kind,
            .id = transfers_.begin(spill),
            .from = host_.granule(slot),
            .to = disk_.granule(*spill.disk),
            .granules = options_.granules_per_block});
  return true;
}

void TierCache::spill_oldest() {
  if (disk_.size() == 0) return;
  const std::int32_t share = ceil_div(host_.size(), kSpilledShare);
  std::int32_t left = std::min(share, spill_window_) - host_.num_free();
  auto spills = spill_window_ - static_cast<std::int32_t>(transfers_.num_pending(MemoryOpKind::kSpill));
  for (auto slot = host_.oldest(); slot && left > 0; --left) {
    const auto next = host_.next_oldest(*slot);
    if (!copies(*host_.entry(*slot)).disk && (spills-- <= 0 || !spill(*slot))) return;
    slot = next;
  }
}

bool TierCache::complete(const Transfer& done, TransferEnd end) {
  count(done.kind, end);
  const bool ok = end == TransferEnd::kDone;
  const auto entry = done.host ? host_.entry(*done.host) : std::nullopt;
  const auto disk_entry = done.disk ? disk_.entry(*done.disk) : std::nullopt;
  const bool fills_host = done.kind == MemoryOpKind::kStore || done.kind == MemoryOpKind::kFetch;
  // What was not written holds nothing, and nobody is told of it; what could not be read is not tried again.
  if (fills_host) {
    if (entry && !ok) drop_host(*entry);
    host_.end_write(*done.host);
    if (entry && ok) tell_stored(*entry, KvTier::kHost);
  } else {
    host_.end_read(*done.host);
    const bool is_bad = done.kind == MemoryOpKind::kLoad && end == TransferEnd::kFailed;
    if (entry && is_bad) drop_host(*entry);
  }
  if (done.kind == MemoryOpKind::kFetch) {
    disk_.end_read(*done.disk);
    if (disk_entry && end == TransferEnd::kFailed) drop_disk(*disk_entry);
  } else if (done.kind == MemoryOpKind::kSpill) {
    if (entry && host_.is_idle(*done.host)) host_.make_oldest(*done.host);
    if (disk_entry && !ok) drop_disk(*disk_entry);
    disk_.end_write(*done.disk);
    if (disk_entry && ok) tell_stored(*disk_entry, KvTier::kDisk);
    spill_window_ = ok ? std::min(2 * spill_window_, kMostSpills) : std::max(spill_window_ / 2, 1);
  }
  return ok && entry.has_value();
}

bool TierCache::cancel(TransferId id) {
  if (!ops_.cancel(id)) return false;
  const auto transfer = transfers_.end(id, TransferEnd::kCancelled, 0);
  complete(*transfer, TransferEnd::kCancelled);
  return true;
}

TierStats TierCache::stats() const noexcept {
  TierStats stats = counters_;
  stats.host_blocks = host_.size() - host_.num_free();
  stats.disk_blocks = disk_.size() - disk_.num_free();
  return stats;
}

std::vector<BlockId> TierCache::blocks_being_loaded() const {
  std::vector<BlockId> blocks;
  for (const auto& [id, transfer] : transfers_.pending()) {
    if (transfer.model == options_.model && transfer.block) blocks.push_back(*transfer.block);
  }
  return blocks;
}

void TierCache::count(MemoryOpKind kind, TransferEnd end) noexcept {
  if (end == TransferEnd::kFailed) ++counters_.failures;
  if (end != TransferEnd::kDone) return;
  switch (kind) {
    case MemoryOpKind::kZero:
      return;
    case MemoryOpKind::kStore:
      ++counters_.stores;
      return;
    case MemoryOpKind::kLoad:
      ++counters_.loads;
      return;
    case MemoryOpKind::kSpill:
      ++counters_.spills;
      return;
    case MemoryOpKind::kFetch:
      ++counters_.fetches;
      return;
  }
}

void TierCache::check_invariants() const {
  host_.check_invariants();
  disk_.check_invariants();
  Counts in_host{};
  Counts on_disk{};
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(copies_.size()); ++i) {
    const Copies& own = copies_[static_cast<std::size_t>(i)];
    AIRI_CHECK(!own.host || host_.entry(*own.host) == EntryId{i}) << "host copy of entry " << i;
    AIRI_CHECK(!own.disk || disk_.entry(*own.disk) == EntryId{i}) << "disk copy of entry " << i;
    if (own.host) ++in_host[index(own.owner)];
    if (own.disk) ++on_disk[index(own.owner)];
  }
  AIRI_CHECK(in_host == in_host_ && on_disk == on_disk_) << "copies by owner";
  for (std::int32_t i = 0; i < host_.size(); ++i) {
    const auto entry = host_.entry(TierSlot{i});
    AIRI_CHECK(!entry || copies(*entry).host == TierSlot{i}) << "host slot " << i << " is not its entry's";
  }
  for (std::int32_t i = 0; i < disk_.size(); ++i) {
    const auto entry = disk_.entry(TierSlot{i});
    AIRI_CHECK(!entry || copies(*entry).disk == TierSlot{i}) << "disk slot " << i << " is not its entry's";
  }
}

}  // namespace airi
