#include "kv/block_pool.h"

#include <string>
#include <utility>

#include "base/check.h"

namespace airi {
namespace {

std::int32_t checked_capacity(std::int32_t capacity, std::int32_t block_size) {
  if (capacity < 0) {
    throw InvalidArgument("capacity must not be negative, got " + std::to_string(capacity));
  }
  if (block_size < 1) {
    throw InvalidArgument("block_size must be at least 1, got " + std::to_string(block_size));
  }
  return capacity;
}

}  // namespace

BlockPool::BlockPool(std::int32_t capacity, std::int32_t block_size)
    : capacity_(checked_capacity(capacity, block_size)),
      nodes_(static_cast<std::size_t>(capacity) + 1),
      ring_heads_(static_cast<std::size_t>(capacity)),
      index_(capacity, block_size),
      num_free_(capacity) {
  nodes_.back().prev = nodes_.back().next = capacity_;
  for (std::int32_t i = 0; i < capacity_; ++i) link_between(i, nodes_.back().prev, capacity_);
}

void BlockPool::link_between(std::int32_t block, std::int32_t prev, std::int32_t next) noexcept {
  Node& node = nodes_[static_cast<std::size_t>(block)];
  node.prev = prev;
  node.next = next;
  nodes_[static_cast<std::size_t>(prev)].next = block;
  nodes_[static_cast<std::size_t>(next)].prev = block;
}

void BlockPool::unlink(std::int32_t block) noexcept {
  const Node& node = nodes_[static_cast<std::size_t>(block)];
  nodes_[static_cast<std::size_t>(node.prev)].next = node.next;
  nodes_[static_cast<std::size_t>(node.next)].prev = node.prev;
}

void BlockPool::leave_ring(std::int32_t block) noexcept {
  const Node& node = nodes_[static_cast<std::size_t>(block)];
  nodes_[static_cast<std::size_t>(node.twin_prev)].twin_next = node.twin_next;
  nodes_[static_cast<std::size_t>(node.twin_next)].twin_prev = node.twin_prev;
  std::int32_t& head = ring_heads_[static_cast<std::size_t>(node.entry)];
  if (head == block) head = node.twin_next;
}

void BlockPool::join_ring(std::int32_t block, std::int32_t entry, bool first) noexcept {
  std::int32_t& head = ring_heads_[static_cast<std::size_t>(entry)];
  Node& node = nodes_[static_cast<std::size_t>(block)];
  const std::int32_t last = nodes_[static_cast<std::size_t>(head)].twin_prev;
  node.twin_prev = last;
  node.twin_next = head;
  nodes_[static_cast<std::size_t>(last)].twin_next = block;
  nodes_[static_cast<std::size_t>(head)].twin_prev = block;
  if (first) head = block;
}

std::optional<BlockPool::Hit> BlockPool::find(const BlockKey& key) const noexcept {
  const std::optional<EntryId> entry = index_.find(key);
  if (!entry) return std::nullopt;
  return Hit{BlockId{ring_heads_[airi::index(*entry)]}, index_.serial(*entry)};
}

bool BlockPool::try_take(std::span<BlockId> out) {
  if (static_cast<std::int64_t>(out.size()) > num_available()) return false;
  for (BlockId& slot : out) {
    const std::int32_t block = nodes_.back().next;
    if (is_published(BlockId{block})) {
      ++num_evictions_;
      unpublish(BlockId{block});  // now FREE, and still at the front
    }
    unlink(block);
    --num_free_;
    nodes_[static_cast<std::size_t>(block)].refs = 1;
    slot = BlockId{block};
  }
  return true;
}

void BlockPool::hold(BlockId block) {
  Node& node = nodes_[index(block)];
  if (node.refs++ > 0) return;
  AIRI_DCHECK(node.entry != kUnpublished) << "block " << raw(block) << " is FREE";
  unlink(raw(block));
  --num_cached_;
  const std::int32_t entry = node.entry;
  if (node.twin_next == raw(block)) return;
  leave_ring(raw(block));
  join_ring(raw(block), entry, true);
}

void BlockPool::drop_reference(BlockId block) {
  Node& node = nodes_[index(block)];
  AIRI_CHECK(node.refs > 0) << "block " << raw(block) << " released twice";
  if (--node.refs > 0) return;
  if (node.entry == kUnpublished) {
    link_between(raw(block), capacity_, nodes_.back().next);
    ++num_free_;
    return;
  }
  link_between(raw(block), nodes_.back().prev, capacity_);
  ++num_cached_;
  if (node.twin_next == raw(block)) return;
  const std::int32_t entry = node.entry;
  leave_ring(raw(block));
  join_ring(raw(block), entry, false);
}

void BlockPool::release(std::span<const BlockId> table) {
  for (std::size_t i = table.size(); i-- > 0;) drop_reference(table[i]);
}

EntrySerial BlockPool::publish(BlockId block, const BlockKey& key) {
  Node& node = nodes_[index(block)];
  AIRI_CHECK(node.entry == kUnpublished) << "block " << raw(block) << " is published already";
  AIRI_CHECK(node.refs > 0) << "block " << raw(block) << " is not held";
  const std::optional<EntryId> known = index_.find(key);
  if (known) {
    node.entry = raw(*known);
    join_ring(raw(block), node.entry, true);  // blocks in use stand before cached ones
    return index_.serial(*known);
  }
  const EntryId entry = index_.insert(key);
  node.entry = raw(entry);
  node.twin_prev = node.twin_next = raw(block);
  ring_heads_[index(entry)] = raw(block);
  return index_.serial(entry);
}

void BlockPool::unpublish(BlockId block) {
  Node& node = nodes_[index(block)];
  if (node.entry == kUnpublished) return;
  const EntryId entry{node.entry};
  if (node.twin_next == raw(block)) {
    if (records_removed_) removed_.push_back(index_.hash(entry));
    index_.erase(entry);
  } else {
    leave_ring(raw(block));
  }
  node.entry = kUnpublished;
  if (node.refs > 0) return;
  unlink(raw(block));
  link_between(raw(block), capacity_, nodes_.back().next);
  --num_cached_;
  ++num_free_;
}

std::vector<Hash128> BlockPool::take_removed() { return std::exchange(removed_, {}); }

std::vector<BlockId> BlockPool::eviction_order() const {
  std::vector<BlockId> order;
  for (std::int32_t at = nodes_.back().next; at != capacity_;
       at = nodes_[static_cast<std::size_t>(at)].next) {
    order.push_back(BlockId{at});
  }
  return order;
}

void BlockPool::check_invariants() const {
  index_.check_invariants();
  std::int32_t cached = 0;
  std::int32_t free = 0;
  bool seen_cached = false;
  for (const BlockId block : eviction_order()) {
    AIRI_CHECK(ref_count(block) == 0) << "block " << raw(block) << " is held and on the list";
    seen_cached = seen_cached || is_published(block);
    AIRI_CHECK(is_published(block) == seen_cached) << "FREE block " << raw(block) << " behind CACHED";
    ++(is_published(block) ? cached : free);
    AIRI_CHECK(cached + free <= capacity_) << "the eviction list is a loop";
  }
  AIRI_CHECK(cached == num_cached_ && free == num_free_)
      << "list holds " << cached << " cached and " << free << " free, counted " << num_cached_ << " and "
      << num_free_;
  std::int32_t active = 0;
  std::vector<char> listed(static_cast<std::size_t>(capacity_), 0);
  for (std::int32_t i = 0; i < capacity_; ++i) {
    const Node& node = nodes_[static_cast<std::size_t>(i)];
    active += node.refs > 0 ? 1 : 0;
    if (node.entry == kUnpublished) continue;
    const Node& next = nodes_[static_cast<std::size_t>(node.twin_next)];
    AIRI_CHECK(next.twin_prev == i && next.entry == node.entry) << "ring of block " << i;
    listed[static_cast<std::size_t>(node.entry)] = 1;
    const Node& head = nodes_[static_cast<std::size_t>(ring_heads_[static_cast<std::size_t>(node.entry)])];
    AIRI_CHECK(head.entry == node.entry) << "head of entry " << node.entry;
    AIRI_CHECK(head.refs > 0 || node.refs == 0)
        << "a hit on entry " << node.entry << " avoids the block in use";
  }
  AIRI_CHECK(active == num_active()) << "counted " << active << " active blocks";
  std::int32_t entries = 0;
  for (const char is_listed : listed) entries += is_listed;
  AIRI_CHECK(entries == index_.size()) << "entries without a block";
}

}  // namespace airi
