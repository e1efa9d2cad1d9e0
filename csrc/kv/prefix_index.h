#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kv/hash_chain.h"

namespace airi {

enum class EntryId : std::int32_t {};

// The identity of an index entry, never used twice. A child names its parent by serial
// and not by hash: were two parents to collide, their children still differ.
enum class EntrySerial : std::uint64_t {};
inline constexpr EntrySerial kRootSerial{0};

// What makes a full block: its past, its hash, its tokens and extras.
struct BlockKey {
  EntrySerial parent = kRootSerial;
  Hash128 hash;
  std::span<const std::int32_t> tokens;
  std::span<const std::uint8_t> extras;
  Hash128 parent_hash{};  // told to readers of events; no look-up compares it
};

// A hash table from block contents to entries. An entry holds its parent's serial, its own
// tokens and extras, and a look-up compares all of them, so by induction from the root a
// collision can never return a wrong block. Never knows blocks or reference counts.
//
// Thread safety: none.
// Invariant: every entry is reachable by probing from its home slot; keys are unique.
class PrefixIndex {
 public:
  // At most `capacity` entries. Memory is taken here and nowhere else, but for extras.
  PrefixIndex(std::int32_t capacity, std::int32_t block_size);

  [[nodiscard]] std::optional<EntryId> find(const BlockKey& key) const noexcept;

  // Fetches what a look-up of this hash reads first: with many entries it is far away in memory.
  void prefetch(const Hash128& hash) const noexcept { __builtin_prefetch(&slots_[home(tag_of(hash))]); }

  // REQUIRES: find(key) is empty and size() < capacity.
  EntryId insert(const BlockKey& key);
  void erase(EntryId entry);

  [[nodiscard]] EntrySerial serial(EntryId entry) const noexcept { return entries_[index(entry)].serial; }
  [[nodiscard]] const Hash128& hash(EntryId entry) const noexcept { return entries_[index(entry)].hash; }
  [[nodiscard]] const Hash128& parent_hash(EntryId entry) const noexcept {
    return parent_hashes_[index(entry)];
  }
  [[nodiscard]] std::int32_t size() const noexcept { return size_; }
  [[nodiscard]] std::int32_t block_size() const noexcept { return block_size_; }

  // How many entries have this hash: more than one where contents collide, or where the past of
  // one was forgotten and computed anew.
  [[nodiscard]] std::int32_t count(const Hash128& hash) const noexcept {
    return count_if(hash, [](EntryId) { return true; });
  }
  // And how many of them `holds` for.
  template <class Predicate>
  [[nodiscard]] std::int32_t count_if(const Hash128& wanted, Predicate holds) const noexcept {
    std::int32_t found = 0;
    for (std::size_t at = home(tag_of(wanted)); slots_[at].entry != kEmpty; at = (at + 1) & mask_) {
      // The tag first: an entry is a cache line of its own.
      if (slots_[at].tag != tag_of(wanted)) continue;
      const EntryId entry{slots_[at].entry};
      found += hash(entry) == wanted && holds(entry) ? 1 : 0;
    }
    return found;
  }

  // All entries, in the order in which they were inserted. O(capacity log capacity).
  [[nodiscard]] std::vector<EntryId> entries() const;

  // Throws InvariantError naming the first broken invariant. O(capacity).
  void check_invariants() const;

 private:
  struct Entry {
    Hash128 hash;
    EntrySerial serial{0};
    EntrySerial parent{0};
    std::vector<std::uint8_t> extras;
  };
  // One word of the table: the upper half of hash.lo and the entry; entry < 0 is empty. The home slot follows
  // from the tag, so that moving slots up after an erasure reads no entry: with many of them each costs a
  // miss.
  struct Slot {
    std::uint32_t tag = 0;
    std::int32_t entry = kEmpty;
  };
  static constexpr std::int32_t kEmpty = -1;

  [[nodiscard]] bool equals(EntryId entry, const BlockKey& key) const noexcept;
  [[nodiscard]] std::span<const std::int32_t> tokens_of(EntryId entry) const noexcept;
  static std::uint32_t tag_of(const Hash128& hash) noexcept {
    return static_cast<std::uint32_t>(hash.lo >> 32);
  }
  [[nodiscard]] std::size_t home(std::uint32_t tag) const noexcept { return tag & mask_; }

  std::int32_t block_size_;
  std::size_t mask_;
  std::vector<Slot> slots_;  // a power of two, at most half full
  std::vector<Entry> entries_;
  std::vector<std::int32_t> tokens_;    // [entry][block_size]
  std::vector<Hash128> parent_hashes_;  // by entry
  std::vector<EntryId> unused_;
  std::uint64_t last_serial_ = 0;
  std::int32_t size_ = 0;
};

}  // namespace airi
