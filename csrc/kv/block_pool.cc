#include "kv/block_pool.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/check.h"
#include "kv/tier_cache.h"

namespace airi {
namespace {

SlabShape checked_shape(const SlabShape& shape, std::int32_t block_size) {
  const std::int64_t capacity = std::int64_t{shape.num_slabs} * shape.blocks_per_slab;
  if (shape.num_slabs < 1 || shape.blocks_per_slab < 0 ||
      capacity + shape.num_slabs >= std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("a pool needs at least 1 slab and fewer than 2^31 blocks, got " +
                          std::to_string(shape.num_slabs) + " slabs of " +
                          std::to_string(shape.blocks_per_slab));
  }
  if (block_size < 1) {
    throw InvalidArgument("block_size must be at least 1, got " + std::to_string(block_size));
  }
  return shape;
}

SlabShape single_slab(std::int32_t capacity) {
  if (capacity < 0) {
    throw InvalidArgument("capacity must not be negative, got " + std::to_string(capacity));
  }
  return {.num_slabs = 1, .blocks_per_slab = capacity};
}

}  // namespace

BlockPool::BlockPool(const SlabShape& shape, std::int32_t block_size)
    : shape_(checked_shape(shape, block_size)),
      nodes_(static_cast<std::size_t>(shape.capacity()) + 1),
      free_(shape, nodes_),
      cached_(shape, nodes_),
      quotas_(shape),
      ring_heads_(static_cast<std::size_t>(shape.capacity()), kNoEntry),
      index_(shape.capacity(), block_size) {}

BlockPool::BlockPool(std::int32_t capacity, std::int32_t block_size)
    : BlockPool(single_slab(capacity), block_size) {
  add_slab(SlabId{0});
}

void BlockPool::add_slab(SlabId slab) {
  AIRI_CHECK(index(slab) < static_cast<std::size_t>(shape_.num_slabs) && !has_slab(slab))
      << "slab " << raw(slab) << " cannot be added";
  free_.add_slab(slab);
  ++num_slabs_;
}

void BlockPool::remove_slab(SlabId slab) {
  AIRI_CHECK(index(slab) < static_cast<std::size_t>(shape_.num_slabs) && has_slab(slab))
      << "slab " << raw(slab) << " cannot be removed";
  AIRI_CHECK(num_active_in(slab) == 0)
      << "slab " << raw(slab) << " has " << num_active_in(slab) << " active blocks";
  evict_slab(slab);
  free_.remove_slab(slab);
  --num_slabs_;
}

void BlockPool::drain_slab(SlabId slab) {
  AIRI_CHECK(index(slab) < static_cast<std::size_t>(shape_.num_slabs) && has_slab(slab) && !drains(slab))
      << "slab " << raw(slab) << " cannot be drained";
  evict_slab(slab);
  free_.drain_slab(slab);
}

// Evicts the CACHED blocks of a slab.
void BlockPool::evict_slab(SlabId slab) {
  for (std::int32_t block = shape_.first_block(slab); num_cached_in(slab) > 0; ++block) {
    if (ref_count(BlockId{block}) > 0 || !is_published(BlockId{block})) continue;
    evict(BlockId{block});
    set_free(BlockId{block});
  }
  drop_lost();
}

void BlockPool::attach(TierCache& tiers, std::int32_t num_copies) {
  AIRI_CHECK(index_.size() == 0) << "blocks are published";
  tiers_ = &tiers;
  ring_heads_.assign(static_cast<std::size_t>(capacity()) + static_cast<std::size_t>(num_copies), kNoEntry);
  index_ = PrefixIndex(static_cast<std::int32_t>(ring_heads_.size()), index_.block_size());
  tiers.send_events_to(events_, index_);
  tiers.protect(quotas_);
}

void BlockPool::leave_ring(std::int32_t block) noexcept {
  const BlockNode& node = nodes_[static_cast<std::size_t>(block)];
  nodes_[static_cast<std::size_t>(node.twin_prev)].twin_next = node.twin_next;
  nodes_[static_cast<std::size_t>(node.twin_next)].twin_prev = node.twin_prev;
  std::int32_t& head = ring_heads_[static_cast<std::size_t>(node.entry)];
  if (head == block) head = node.twin_next;
}

void BlockPool::join_ring(std::int32_t block, std::int32_t entry, bool first) noexcept {
  std::int32_t& head = ring_heads_[static_cast<std::size_t>(entry)];
  BlockNode& node = nodes_[static_cast<std::size_t>(block)];
  const std::int32_t last = nodes_[static_cast<std::size_t>(head)].twin_prev;
  node.twin_prev = last;
  node.twin_next = head;
  nodes_[static_cast<std::size_t>(last)].twin_next = block;
  nodes_[static_cast<std::size_t>(head)].twin_prev = block;
  if (first) head = block;
}

std::optional<BlockPool::Hit> BlockPool::find(const BlockKey& key) const noexcept {
  const std::optional<EntryId> entry = index_.find(key);
  if (!entry || ring_heads_[airi::index(*entry)] == kInTiersOnly) return std::nullopt;
  return Hit{BlockId{ring_heads_[airi::index(*entry)]}, index_.serial(*entry)};
}

std::optional<BlockPool::Known> BlockPool::find_known(const BlockKey& key) const noexcept {
  const std::optional<EntryId> entry = index_.find(key);
  if (!entry) return std::nullopt;
  return Known{*entry, index_.serial(*entry)};
}

bool BlockPool::is_same(const Known& known) const noexcept {
  return ring_heads_[index(known.entry)] != kNoEntry && index_.serial(known.entry) == known.serial;
}

void BlockPool::erase_entry(EntryId entry) {
  ring_heads_[index(entry)] = kNoEntry;
  index_.erase(entry);
  if (tiers_ != nullptr) tiers_->forget(entry);
}

void BlockPool::drop_lost() {
  if (tiers_ == nullptr) return;
  for (const EntryId entry : tiers_->lost()) {
    if (ring_heads_[index(entry)] == kInTiersOnly && !tiers_->keeps(entry)) erase_entry(entry);
  }
  tiers_->lost().clear();
}

bool BlockPool::try_take(std::span<BlockId> out) {
  if (static_cast<std::int64_t>(out.size()) > num_available()) return false;
  for (BlockId& slot : out) {
    if (free_.size() > 0) {
      slot = BlockId{free_.pop()};
    } else {
      slot = BlockId{cached_.choose_victim()};
      evict(slot);
    }
    nodes_[index(slot)].refs = 1;
  }
  drop_lost();
  return true;
}

bool BlockPool::try_take_for(QuotaGroup group, std::int32_t outstanding, std::span<BlockId> out) {
  if (!quotas_.enabled()) return try_take(out);
  const auto unpromised = [&] { return num_available() - outstanding - quotas_.counts().num_idle(); };
  if (static_cast<std::int64_t>(out.size()) > unpromised() + quotas_.counts().num_idle(group)) return false;
  for (BlockId& slot : out) {
    // Where all else is promised, the tenant evicts its own: what is protected for it is idle.
    const bool only_own = unpromised() <= 0;
    if (!only_own && free_.size() > 0) {
      slot = BlockId{free_.pop()};
    } else {
      const std::int32_t common = cached_.size() > 0 ? cached_.choose_victim() : capacity();
      slot = BlockId{quotas_.choose_victim(group, common, only_own)};
      AIRI_CHECK(raw(slot) < capacity()) << "quotas protect every CACHED block";
      evict(slot);
      quotas_.set_free(raw(slot));
    }
    quotas_.take(raw(slot), group);
    nodes_[index(slot)].refs = 1;
  }
  drop_lost();
  return true;
}

void BlockPool::end_quota(TenantId tenant) {
  const QuotaGroup group = quotas_.counts().group_of(tenant);
  if (group == kNoQuota) return;
  if (tiers_ != nullptr) tiers_->disown(group);
  cached_.begin_release();
  for (const BlockId block : quotas_.dismiss(group)) cache(block);
}

void BlockPool::cache(BlockId block) noexcept {
  if (quotas_.owner(raw(block)) != kNoQuota) {
    quotas_.cache(raw(block));
    return;
  }
  cached_.push_back(raw(block));
  if (quotas_.enabled()) quotas_.stamp(raw(block));
}

void BlockPool::uncache(BlockId block) noexcept {
  if (quotas_.owner(raw(block)) != kNoQuota) {
    quotas_.uncache(raw(block));
  } else {
    cached_.remove(raw(block));
  }
}

void BlockPool::set_free(BlockId block) noexcept {
  if (quotas_.enabled() && returns(block)) {
    quotas_.set_free(raw(block));
  } else if (quotas_.enabled()) {
    quotas_.lose(raw(block));
  }
  free_.push(raw(block));
}

void BlockPool::hold(BlockId block) {
  BlockNode& node = nodes_[index(block)];
  if (node.refs++ > 0) return;
  AIRI_DCHECK(node.entry != kUnpublished) << "block " << raw(block) << " is FREE";
  uncache(block);
  const std::int32_t entry = node.entry;
  if (node.twin_next == raw(block)) return;
  leave_ring(raw(block));
  join_ring(raw(block), entry, true);
}

void BlockPool::drop_reference(BlockId block) {
  BlockNode& node = nodes_[index(block)];
  AIRI_CHECK(node.refs > 0) << "block " << raw(block) << " released twice";
  if (--node.refs > 0) return;
  if (!returns(block) && node.entry != kUnpublished) {
    offer_to_tiers(block);
    forget(block);
  }
  if (node.entry == kUnpublished) {
    set_free(block);
    return;
  }
  cache(block);
  if (node.twin_next == raw(block)) return;
  const std::int32_t entry = node.entry;
  leave_ring(raw(block));
  join_ring(raw(block), entry, false);
}

void BlockPool::release(std::span<const BlockId> table) {
  cached_.begin_release();
  for (std::size_t i = table.size(); i-- > 0;) drop_reference(table[i]);
  drop_lost();
}

EntrySerial BlockPool::publish(BlockId block, const BlockKey& key) {
  BlockNode& node = nodes_[index(block)];
  AIRI_CHECK(node.entry == kUnpublished) << "block " << raw(block) << " is published already";
  AIRI_CHECK(node.refs > 0) << "block " << raw(block) << " is not held";
  const std::optional<EntryId> known = index_.find(key);
  if (known && ring_heads_[index(*known)] != kInTiersOnly) {
    node.entry = raw(*known);
    join_ring(raw(block), node.entry, true);  // blocks in use stand before cached ones
    return index_.serial(*known);
  }
  const EntryId entry = known ? *known : index_.insert(key);
  if (events_.enabled() && !others_are_on_device(entry)) {
    events_.stored(KvTier::kDevice, key.hash, key.parent_hash);
  }
  node.entry = raw(entry);
  node.twin_prev = node.twin_next = raw(block);
  ring_heads_[index(entry)] = raw(block);
  return index_.serial(entry);
}

// The block's entry, if this is its last block and no tier has a copy, goes; lists stay as they are.
void BlockPool::forget(BlockId block) {
  BlockNode& node = nodes_[index(block)];
  const EntryId entry{node.entry};
  if (node.twin_next == raw(block)) {
    ++num_forgotten_;
    if (events_.enabled() && !others_are_on_device(entry)) {
      events_.removed(KvTier::kDevice, index_.hash(entry));
    }
    if (tiers_ != nullptr && tiers_->keeps(entry)) {
      ring_heads_[index(entry)] = kInTiersOnly;
    } else {
      erase_entry(entry);
    }
  } else {
    leave_ring(raw(block));
  }
  node.entry = kUnpublished;
}

// A block that nobody refers to is about to lose its contents.
void BlockPool::offer_to_tiers(BlockId block) {
  const BlockNode& node = nodes_[index(block)];
  if (tiers_ != nullptr && node.twin_next == raw(block)) tiers_->on_evict(EntryId{node.entry}, block);
}

// Takes a CACHED block off its list; whose it is now is the caller's business.
void BlockPool::evict(BlockId block) {
  ++num_evictions_;
  uncache(block);
  offer_to_tiers(block);
  forget(block);
}

void BlockPool::unpublish(BlockId block) {
  if (!is_published(block)) return;
  if (tiers_ != nullptr) tiers_->forget(entry_of(block));
  forget(block);
  drop_lost();
  if (ref_count(block) > 0) return;
  uncache(block);
  set_free(block);
}

// True iff a block has an entry of the same hash, other than this one.
bool BlockPool::others_are_on_device(EntryId entry) const noexcept {
  return index_.any_namesake(entry, [this](EntryId other) { return ring_heads_[index(other)] >= 0; });
}

bool BlockPool::is_readable(EntryId entry, KvTier tier) const noexcept {
  if (tier == KvTier::kDevice) return ring_heads_[index(entry)] >= 0;
  return tiers_ != nullptr && tiers_->is_readable(entry, tier);
}

std::vector<KvEvent> BlockPool::stored_hashes() const {
  std::vector<KvEvent> stored;
  for (const EntryId entry : index_.entries()) {
    const Hash128& hash = index_.hash(entry);
    const bool is_doubled = index_.has_namesake(entry);
    for (const KvTier tier : {KvTier::kDevice, KvTier::kHost, KvTier::kDisk}) {
      if (!is_readable(entry, tier)) continue;
      const auto is_told = [&](const KvEvent& e) { return e.tier == tier && e.hash == hash; };
      if (is_doubled && std::ranges::any_of(stored, is_told)) continue;
      stored.push_back(events_.event(KvEventKind::kStored, tier, hash, index_.parent_hash(entry)));
    }
  }
  return stored;
}

std::vector<BlockId> BlockPool::eviction_order() const {
  std::vector<BlockId> order = free_.order();
  const std::vector<BlockId> cached = cached_.order();
  order.insert(order.end(), cached.begin(), cached.end());
  const std::vector<BlockId> owned = quotas_.order();
  order.insert(order.end(), owned.begin(), owned.end());
  return order;
}

void BlockPool::check_invariants() const {
  index_.check_invariants();
  free_.check_invariants();
  cached_.check_invariants();
  quotas_.check_invariants();
  for (const BlockId block : free_.order()) {
    AIRI_CHECK(ref_count(block) == 0 && !is_published(block)) << "block " << raw(block) << " is not FREE";
  }
  for (const auto& cached : {cached_.order(), quotas_.order()}) {
    for (const BlockId block : cached) {
      AIRI_CHECK(ref_count(block) == 0 && is_published(block)) << "block " << raw(block) << " is not CACHED";
    }
  }
  check_blocks();
}

void BlockPool::check_blocks() const {
  std::int32_t active = 0;
  std::int32_t published = 0;
  std::vector<char> listed(ring_heads_.size(), 0);
  for (std::int32_t i = 0; i < capacity(); ++i) {
    const BlockNode& node = nodes_[static_cast<std::size_t>(i)];
    active += node.refs > 0 ? 1 : 0;
    AIRI_CHECK(has_slab(shape_.slab_of(i)) || (node.refs == 0 && node.entry == kUnpublished))
        << "block " << i << " is in use and absent";
    if (node.entry == kUnpublished) continue;
    ++published;
    const BlockNode& next = nodes_[static_cast<std::size_t>(node.twin_next)];
    AIRI_CHECK(next.twin_prev == i && next.entry == node.entry) << "ring of block " << i;
    listed[static_cast<std::size_t>(node.entry)] = 1;
    const BlockNode& head =
        nodes_[static_cast<std::size_t>(ring_heads_[static_cast<std::size_t>(node.entry)])];
    AIRI_CHECK(head.entry == node.entry) << "head of entry " << node.entry;
    AIRI_CHECK(head.refs > 0 || node.refs == 0)
        << "a hit on entry " << node.entry << " avoids the block in use";
  }
  AIRI_CHECK(active == num_active()) << "counted " << active << " active blocks of " << num_active();
  AIRI_CHECK(published >= num_cached()) << "CACHED blocks without an entry";
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(ring_heads_.size()); ++i) {
    const std::int32_t head = ring_heads_[static_cast<std::size_t>(i)];
    if (head == kInTiersOnly) {
      AIRI_CHECK(tiers_->keeps(EntryId{i})) << "entry " << i << " is kept and has no copy";
      ++listed[static_cast<std::size_t>(i)];
    }
    AIRI_CHECK((head != kNoEntry) == (listed[static_cast<std::size_t>(i)] == 1)) << "head of entry " << i;
  }
  const auto entries = std::count(listed.begin(), listed.end(), 1);
  AIRI_CHECK(entries == index_.size()) << "entries without a block";
}

}  // namespace airi
