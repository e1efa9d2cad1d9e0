#include "kv/prefix_index.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace airi {

PrefixIndex::PrefixIndex(std::int32_t capacity, std::int32_t block_size)
    : block_size_(block_size),
      mask_(std::bit_ceil(2 * static_cast<std::size_t>(std::max(capacity, 1))) - 1),
      slots_(mask_ + 1),
      entries_(static_cast<std::size_t>(capacity)),
      tokens_(static_cast<std::size_t>(capacity) * static_cast<std::size_t>(block_size)) {
  unused_.reserve(entries_.size());
  for (std::int32_t i = capacity; i-- > 0;) unused_.push_back(EntryId{i});
}

std::span<const std::int32_t> PrefixIndex::tokens_of(EntryId entry) const noexcept {
  const auto size = static_cast<std::size_t>(block_size_);
  return std::span(tokens_).subspan(index(entry) * size, size);
}

std::span<const std::uint8_t> PrefixIndex::extras_of(EntryId entry) const noexcept {
  const auto& extras = entries_[index(entry)].extras;
  return extras ? std::span<const std::uint8_t>(*extras) : std::span<const std::uint8_t>();
}

bool PrefixIndex::equals(EntryId id, const BlockKey& key) const noexcept {
  const Entry& entry = entries_[index(id)];
  return entry.parent == key.parent && entry.hash == key.hash &&
         std::ranges::equal(tokens_of(id), key.tokens) && std::ranges::equal(extras_of(id), key.extras);
}

std::optional<EntryId> PrefixIndex::find(const BlockKey& key) const noexcept {
  const std::uint32_t tag = tag_of(key.hash);
  for (std::size_t at = home(tag);; at = (at + 1) & mask_) {
    const Slot& slot = slots_[at];
    if (slot.entry == kEmpty) return std::nullopt;
    if (slot.tag == tag && equals(EntryId{slot.entry}, key)) return EntryId{slot.entry};
  }
}

std::vector<EntryId> PrefixIndex::entries() const {
  std::vector<EntryId> all;
  all.reserve(static_cast<std::size_t>(size_));
  for (const Slot& slot : slots_) {
    if (slot.entry != kEmpty) all.push_back(EntryId{slot.entry});
  }
  std::ranges::sort(all, {}, [this](EntryId entry) { return serial(entry); });
  return all;
}

EntryId PrefixIndex::insert(const BlockKey& key) {
  AIRI_CHECK(!unused_.empty()) << "the prefix index is full";
  AIRI_CHECK(key.tokens.size() == static_cast<std::size_t>(block_size_)) << "a partial block";
  const EntryId id = unused_.back();
  unused_.pop_back();
  Entry& entry = entries_[index(id)];
  entry.hash = key.hash;
  entry.parent_hash = key.parent_hash;
  entry.parent = key.parent;
  entry.serial = EntrySerial{++last_serial_};
  if (!key.extras.empty()) {
    entry.extras = std::make_unique<const std::vector<std::uint8_t>>(key.extras.begin(), key.extras.end());
  }
  std::ranges::copy(key.tokens, tokens_.begin() + static_cast<std::ptrdiff_t>(index(id) * key.tokens.size()));
  entry.namesake = id;
  const std::optional<EntryId> other = occupy_slot(id);
  if (other) std::swap(entry.namesake, entries_[index(*other)].namesake);
  ++size_;
  return id;
}

// Returns another entry of the same hash, if there is one: it is on the way to the empty slot.
std::optional<EntryId> PrefixIndex::occupy_slot(EntryId id) noexcept {
  const std::uint32_t tag = tag_of(hash(id));
  std::optional<EntryId> namesake;
  std::size_t at = home(tag);
  for (; slots_[at].entry != kEmpty; at = (at + 1) & mask_) {
    const EntryId other{slots_[at].entry};
    if (slots_[at].tag == tag && hash(other) == hash(id)) namesake = other;
  }
  slots_[at] = {tag, raw(id)};
  return namesake;
}

void PrefixIndex::leave_ring(EntryId id) noexcept {
  EntryId before = id;
  while (entries_[index(before)].namesake != id) before = entries_[index(before)].namesake;
  entries_[index(before)].namesake = entries_[index(id)].namesake;
}

void PrefixIndex::erase(EntryId id) {
  std::size_t hole = home(tag_of(hash(id)));
  while (slots_[hole].entry != raw(id)) {
    AIRI_CHECK(slots_[hole].entry != kEmpty) << "entry " << raw(id) << " is not in the table";
    hole = (hole + 1) & mask_;
  }
  leave_ring(id);
  // Linear probing without tombstones: move up whatever may still be reached from its home.
  for (std::size_t at = (hole + 1) & mask_; slots_[at].entry != kEmpty; at = (at + 1) & mask_) {
    const std::size_t wanted = home(slots_[at].tag);
    if (((at - wanted) & mask_) < ((at - hole) & mask_)) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = Slot{};
  entries_[index(id)].extras.reset();
  unused_.push_back(id);
  --size_;
}

// O(slots on the way).
void PrefixIndex::check_ring(EntryId id) const {
  const std::uint32_t tag = tag_of(hash(id));
  std::int32_t namesakes = 0;
  for (std::size_t at = home(tag); slots_[at].entry != kEmpty; at = (at + 1) & mask_) {
    const EntryId other{slots_[at].entry};
    namesakes += other != id && hash(other) == hash(id) ? 1 : 0;
  }
  std::int32_t in_ring = 0;
  static_cast<void>(any_namesake(id, [&](EntryId other) {
    AIRI_CHECK(hash(other) == hash(id)) << "the ring of entry " << raw(id) << " has another hash";
    return ++in_ring > namesakes;
  }));
  AIRI_CHECK(in_ring == namesakes) << "entry " << raw(id) << " has " << namesakes << " namesakes";
}

void PrefixIndex::check_invariants() const {
  std::int32_t found = 0;
  for (std::size_t at = 0; at < slots_.size(); ++at) {
    if (slots_[at].entry == kEmpty) continue;
    ++found;
    const EntryId id{slots_[at].entry};
    const Entry& entry = entries_[index(id)];
    const auto same = find({entry.parent, entry.hash, tokens_of(id), extras_of(id)});
    AIRI_CHECK(same == id) << "entry " << raw(id) << " is unreachable or doubled";
    AIRI_CHECK(slots_[at].tag == tag_of(entry.hash)) << "tag of entry " << raw(id);
    check_ring(id);
  }
  AIRI_CHECK(found == size_) << "table holds " << found << " entries, counted " << size_;
  AIRI_CHECK(unused_.size() + static_cast<std::size_t>(size_) == entries_.size());
}

}  // namespace airi
