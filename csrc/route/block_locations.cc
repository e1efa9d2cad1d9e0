#include "route/block_locations.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"
#include "base/ids.h"

namespace airi::route {
namespace {

// How far ahead of the walk places are fetched: one look-up waits for memory, so many at a time hardly do.
constexpr std::size_t kFetchAhead = 16;

constexpr std::uint64_t bit_of(ReplicaSlot replica) noexcept { return std::uint64_t{1} << index(replica); }

// Slots that hold so many hashes with a quarter of them free.
std::size_t slots_for(std::size_t hashes, std::size_t least) {
  return std::max(least, std::bit_ceil(hashes + hashes / 3 + 1));
}

}  // namespace

std::size_t BlockLocations::find(const Hash128& hash) const noexcept {
  std::size_t place = home(hash);
  while (!slots_[place].is_free() && slots_[place].hash != hash) place = next(place);
  return place;
}

// The caller sets a bit at once: a place without one is free.
BlockLocations::Entry& BlockLocations::find_or_insert(const Hash128& hash) {
  std::size_t place = find(hash);
  if (!slots_[place].is_free()) return slots_[place];
  if (slots_for(size_ + 1, kLeastSlots) > slots_.size()) {
    rebuild(2 * slots_.size());
    place = find(hash);
  }
  ++size_;
  slots_[place].hash = hash;
  return slots_[place];
}

// Moves up what probing would no longer reach (Knuth, TAOCP 3, 6.4, algorithm R).
void BlockLocations::erase_if_free(std::size_t place) noexcept {
  if (!slots_[place].is_free()) return;
  --size_;
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t at = next(place); !slots_[at].is_free(); at = next(at)) {
    if (((at - home(slots_[at].hash)) & mask) < ((at - place) & mask)) continue;
    slots_[place] = std::exchange(slots_[at], Entry{});
    place = at;
  }
}

void BlockLocations::rebuild(std::size_t num_slots) {
  std::vector<Entry> old(num_slots);
  old.swap(slots_);
  size_ = 0;
  for (const Entry& entry : old) {
    if (entry.is_free()) continue;
    slots_[find(entry.hash)] = entry;
    ++size_;
  }
}

void BlockLocations::apply(ReplicaSlot replica, ModelId model, std::span<const KvEvent> events) {
  for (std::size_t i = 0; i < events.size(); ++i) {
    if (i + kFetchAhead < events.size()) {
      __builtin_prefetch(&slots_[home(events[i + kFetchAhead].hash)], 1);
    }
    const KvEvent& event = events[i];
    const auto tier = static_cast<std::size_t>(event.tier);
    if (event.model != model || tier >= kTiers) continue;
    if (event.kind == KvEventKind::kStored) note_stored(replica, tier, event.hash);
    if (event.kind == KvEventKind::kRemoved) note_removed(replica, tier, event.hash);
  }
}

void BlockLocations::note_stored(ReplicaSlot replica, std::size_t tier, const Hash128& hash) {
  const std::uint64_t bit = bit_of(replica);
  const std::size_t at = index(replica);
  const bool is_known = (slots_[find(hash)].anywhere() & bit) != 0;
  if (!is_known && num_stored_[at] >= capacity_[at]) {
    ++num_left_out_[at];
    unmark_sent(replica, hash);
    return;
  }
  Entry& entry = find_or_insert(hash);
  entry.stored[tier] |= bit;
  entry.sent &= ~bit;
  if (!is_known) ++num_stored_[at];
}

void BlockLocations::note_removed(ReplicaSlot replica, std::size_t tier, const Hash128& hash) noexcept {
  const std::uint64_t bit = bit_of(replica);
  const std::size_t place = find(hash);
  Entry& entry = slots_[place];
  if ((entry.stored[tier] & bit) == 0) return;
  entry.stored[tier] &= ~bit;
  if ((entry.anywhere() & bit) == 0) --num_stored_[index(replica)];
  erase_if_free(place);
}

void BlockLocations::clear(ReplicaSlot replica, bool also_sent) {
  const std::uint64_t bit = bit_of(replica);
  std::size_t left = 0;
  for (Entry& entry : slots_) {
    for (std::uint64_t& tier : entry.stored) tier &= ~bit;
    if (also_sent) entry.sent &= ~bit;
    if (!entry.is_free()) ++left;
  }
  num_stored_[index(replica)] = 0;
  // Places became free in the midst of others: all are found anew.
  rebuild(slots_for(left, kLeastSlots));
}

void BlockLocations::forget_stored(ReplicaSlot replica) { clear(replica, false); }

void BlockLocations::forget(ReplicaSlot replica) {
  clear(replica, true);
  capacity_[index(replica)] = 0;
  num_left_out_[index(replica)] = 0;
}

bool BlockLocations::mark_sent(ReplicaSlot replica, const Hash128& hash) {
  const std::uint64_t bit = bit_of(replica);
  Entry& entry = find_or_insert(hash);
  if (((entry.anywhere() | entry.sent) & bit) != 0) return false;
  entry.sent |= bit;
  return true;
}

void BlockLocations::unmark_sent(ReplicaSlot replica, const Hash128& hash) {
  const std::size_t place = find(hash);
  if ((slots_[place].sent & bit_of(replica)) == 0) return;
  slots_[place].sent &= ~bit_of(replica);
  erase_if_free(place);
}

bool BlockLocations::is_sent(ReplicaSlot replica, const Hash128& hash) const noexcept {
  return (slots_[find(hash)].sent & bit_of(replica)) != 0;
}

void BlockLocations::match(std::span<const Hash128> chain, std::uint64_t replicas,
                           std::array<PrefixMatch, kMaxReplicas>& out) const noexcept {
  std::uint64_t stored = replicas;    // that have all blocks so far
  std::uint64_t expected = replicas;  // or were sent them; a superset
  const auto end = [&](std::uint64_t ended, std::int32_t PrefixMatch::* length, std::size_t blocks) {
    for (; ended != 0; ended &= ended - 1) {
      out[static_cast<std::size_t>(std::countr_zero(ended))].*length = static_cast<std::int32_t>(blocks);
    }
  };
  for (std::size_t i = 0; i < chain.size() && expected != 0; ++i) {
    if (i + kFetchAhead < chain.size()) __builtin_prefetch(&slots_[home(chain[i + kFetchAhead])]);
    const Entry& entry = slots_[find(chain[i])];
    const std::uint64_t has = entry.anywhere();
    end(stored & ~has, &PrefixMatch::stored, i);
    end(expected & ~(has | entry.sent), &PrefixMatch::expected, i);
    stored &= has;
    expected &= has | entry.sent;
  }
  end(stored, &PrefixMatch::stored, chain.size());
  end(expected, &PrefixMatch::expected, chain.size());
}

void BlockLocations::check_invariants() const {
  std::array<std::int64_t, kMaxReplicas> found{};
  std::size_t size = 0;
  for (std::size_t place = 0; place < slots_.size(); ++place) {
    const Entry& entry = slots_[place];
    if (entry.is_free()) continue;
    ++size;
    AIRI_CHECK(find(entry.hash) == place) << "a hash is not found where it lies";
    AIRI_CHECK((entry.anywhere() & entry.sent) == 0) << "a hash is stored and still sent";
    for (std::uint64_t has = entry.anywhere(); has != 0; has &= has - 1) {
      ++found[static_cast<std::size_t>(std::countr_zero(has))];
    }
  }
  AIRI_CHECK(size == size_) << "the table holds " << size << " hashes and says " << size_;
  AIRI_CHECK(found == num_stored_) << "what a replica has is not what was counted";
  for (std::size_t i = 0; i < kMaxReplicas; ++i) {
    AIRI_CHECK(num_stored_[i] <= capacity_[i]) << "replica " << i << " has more than its capacity";
  }
}

}  // namespace airi::route
