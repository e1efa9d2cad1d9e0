#include "kv/prefix_index.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace airi {

PrefixIndex::PrefixIndex(std::int32_t capacity, std::int32_t block_size)
    : block_size_(block_size),
      mask_(std::bit_ceil(2 * static_cast<std::size_t>(std::max(capacity, 1))) - 1),
      slots_(mask_ + 1),
      entries_(static_cast<std::size_t>(capacity)),
      tokens_(static_cast<std::size_t>(capacity) * static_cast<std::size_t>(block_size)),
      parent_hashes_(entries_.size()) {
  unused_.reserve(entries_.size());
  for (std::int32_t i = capacity; i-- > 0;) unused_.push_back(EntryId{i});
}

std::span<const std::int32_t> PrefixIndex::tokens_of(EntryId entry) const noexcept {
  const auto size = static_cast<std::size_t>(block_size_);
  return std::span(tokens_).subspan(index(entry) * size, size);
}

bool PrefixIndex::equals(EntryId id, const BlockKey& key) const noexcept {
  const Entry& entry = entries_[index(id)];
  return entry.parent == key.parent && entry.hash == key.hash &&
         std::ranges::equal(tokens_of(id), key.tokens) && std::ranges::equal(entry.extras, key.extras);
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
  entry.parent = key.parent;
  entry.serial = EntrySerial{++last_serial_};
  parent_hashes_[index(id)] = key.parent_hash;
  entry.extras.assign(key.extras.begin(), key.extras.end());
  std::ranges::copy(key.tokens, tokens_.begin() + static_cast<std::ptrdiff_t>(index(id) * key.tokens.size()));
  std::size_t at = home(tag_of(key.hash));
  while (slots_[at].entry != kEmpty) at = (at + 1) & mask_;
  slots_[at] = {tag_of(key.hash), raw(id)};
  ++size_;
  return id;
}

void PrefixIndex::erase(EntryId id) {
  std::size_t hole = home(tag_of(hash(id)));
  while (slots_[hole].entry != raw(id)) {
    AIRI_CHECK(slots_[hole].entry != kEmpty) << "entry " << raw(id) << " is not in the table";
    hole = (hole + 1) & mask_;
  }
  // Linear probing without tombstones: move up whatever may still be reached from its home.
  for (std::size_t at = (hole + 1) & mask_; slots_[at].entry != kEmpty; at = (at + 1) & mask_) {
    const std::size_t wanted = home(slots_[at].tag);
    if (((at - wanted) & mask_) < ((at - hole) & mask_)) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = Slot{};
  entries_[index(id)].extras.clear();
  unused_.push_back(id);
  --size_;
}

void PrefixIndex::check_invariants() const {
  std::int32_t found = 0;
  for (std::size_t at = 0; at < slots_.size(); ++at) {
    if (slots_[at].entry == kEmpty) continue;
    ++found;
    const EntryId id{slots_[at].entry};
    const Entry& entry = entries_[index(id)];
    const auto same = find({entry.parent, entry.hash, tokens_of(id), entry.extras});
    AIRI_CHECK(same == id) << "entry " << raw(id) << " is unreachable or doubled";
  }
  AIRI_CHECK(found == size_) << "table holds " << found << " entries, counted " << size_;
  AIRI_CHECK(unused_.size() + static_cast<std::size_t>(size_) == entries_.size());
}

}  // namespace airi
