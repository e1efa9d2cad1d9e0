#include "kv/tier_slots.h"

#include <utility>

#include "base/check.h"

namespace airi {

TierSlots::TierSlots(std::vector<std::int64_t> granules)
    : granules_(std::move(granules)), nodes_(granules_.size() + 1) {
  nodes_.back().prev = nodes_.back().next = size();
  free_.reserve(granules_.size());
  for (std::int32_t i = size(); i-- > 0;) free_.push_back(TierSlot{i});
}

void TierSlots::link_before(std::int32_t slot, std::int32_t next) noexcept {
  Node& node = nodes_[static_cast<std::size_t>(slot)];
  Node& after = nodes_[static_cast<std::size_t>(next)];
  node.prev = after.prev;
  node.next = next;
  nodes_[static_cast<std::size_t>(after.prev)].next = slot;
  after.prev = slot;
  ++num_idle_;
}

void TierSlots::unlink(std::int32_t slot) noexcept {
  const Node& node = nodes_[static_cast<std::size_t>(slot)];
  nodes_[static_cast<std::size_t>(node.prev)].next = node.next;
  nodes_[static_cast<std::size_t>(node.next)].prev = node.prev;
  --num_idle_;
}

void TierSlots::make_free(TierSlot slot) {
  at(slot) = Node{};
  free_.push_back(slot);
}

// After a transfer or a pin ended.
void TierSlots::settle(TierSlot slot) {
  const Node& node = at(slot);
  if (node.state != State::kReady || node.readers > 0) return;
  if (!node.entry) {
    make_free(slot);
  } else if (node.pins == 0) {
    link_before(raw(slot), size());
  }
}

std::optional<TierSlot> TierSlots::try_begin_write(EntryId entry) {
  if (free_.empty()) return std::nullopt;
  const TierSlot slot = free_.back();
  free_.pop_back();
  at(slot).state = State::kWriting;
  at(slot).entry = entry;
  at(slot).copy = ++last_copy_;
  return slot;
}

void TierSlots::end_write(TierSlot slot) {
  AIRI_CHECK(at(slot).state == State::kWriting) << "slot " << raw(slot) << " is not being written";
  at(slot).state = State::kReady;
  settle(slot);
}

void TierSlots::begin_read(TierSlot slot) {
  AIRI_CHECK(is_ready(slot) && at(slot).entry) << "slot " << raw(slot) << " is not ready";
  if (is_idle(slot)) unlink(raw(slot));
  ++at(slot).readers;
}

void TierSlots::end_read(TierSlot slot) {
  AIRI_CHECK(at(slot).readers > 0) << "slot " << raw(slot) << " has no reader";
  --at(slot).readers;
  settle(slot);
}

TierPin TierSlots::pin(TierSlot slot) {
  AIRI_CHECK(at(slot).entry.has_value()) << "slot " << raw(slot) << " holds nothing to pin";
  if (is_idle(slot)) unlink(raw(slot));
  ++at(slot).pins;
  return {slot, at(slot).copy};
}

void TierSlots::unpin(const TierPin& pin) {
  Node& node = at(pin.slot);
  if (node.copy != pin.copy || !node.entry) return;
  AIRI_CHECK(node.pins > 0) << "slot " << raw(pin.slot) << " is not pinned";
  if (--node.pins == 0) settle(pin.slot);
}

void TierSlots::make_newest(TierSlot slot) {
  AIRI_DCHECK(is_idle(slot));
  unlink(raw(slot));
  link_before(raw(slot), size());
}

void TierSlots::make_oldest(TierSlot slot) {
  AIRI_DCHECK(is_idle(slot));
  unlink(raw(slot));
  link_before(raw(slot), nodes_.back().next);
}

void TierSlots::drop(TierSlot slot) {
  Node& node = at(slot);
  AIRI_CHECK(node.entry.has_value()) << "slot " << raw(slot) << " holds nothing";
  if (is_idle(slot)) unlink(raw(slot));
  node.entry.reset();
  node.pins = 0;
  if (node.state == State::kReady && node.readers == 0) make_free(slot);
}

void TierSlots::check_invariants() const {
  std::int32_t idle = 0;
  for (auto slot = oldest(); slot; slot = next_oldest(*slot)) {
    AIRI_CHECK(is_idle(*slot) && at(*slot).entry) << "slot " << raw(*slot) << " is listed and not idle";
    AIRI_CHECK(++idle <= num_idle_) << "the list of idle slots is a loop";
  }
  AIRI_CHECK(idle == num_idle_) << "listed " << idle << " idle slots, counted " << num_idle_;
  std::int32_t free = 0;
  for (std::int32_t i = 0; i < size(); ++i) {
    const Node& node = at(TierSlot{i});
    free += node.state == State::kFree ? 1 : 0;
    idle -= is_idle(TierSlot{i}) ? 1 : 0;
    AIRI_CHECK(node.readers == 0 || node.state == State::kReady)
        << "slot " << i << " is read before it is ready";
    AIRI_CHECK(node.pins == 0 || node.entry) << "slot " << i << " is pinned and holds nothing";
    AIRI_CHECK(node.state != State::kFree || !node.entry) << "slot " << i << " is FREE and holds a copy";
  }
  AIRI_CHECK(free == num_free()) << "counted " << free << " FREE slots of " << num_free();
  AIRI_CHECK(idle == 0) << "idle slots are missing on the list";
}

}  // namespace airi
