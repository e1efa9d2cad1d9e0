#pragma once

#include <cstdint>
#include <memory>
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
// Invariant: every entry is reachable by probing from its home slot; keys are unique; entries of one hash
// form one ring.
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
    return entries_[index(entry)].parent_hash;
  }
  [[nodiscard]] std::int32_t size() const noexcept { return size_; }
  [[nodiscard]] std::int32_t block_size() const noexcept { return block_size_; }

  // True iff another entry has the same hash: contents that collide, or that were computed anew after the
  // past of the others was forgotten.
  [[nodiscard]] bool has_namesake(EntryId entry) const noexcept {
    return entries_[index(entry)].namesake != entry;
  }
  // True iff `holds` of another entry of the same hash. O(such entries).
  template <class Predicate>
  [[nodiscard]] bool any_namesake(EntryId entry, Predicate holds) const noexcept {
    for (EntryId at = entries_[index(entry)].namesake; at != entry; at = entries_[index(at)].namesake) {
      if (holds(at)) return true;
    }
    return false;
  }

  // All entries, in the order in which they were inserted. O(capacity log capacity).
  [[nodiscard]] std::vector<EntryId> entries() const;

  // Throws InvariantError naming the first broken invariant. O(capacity).
  void check_invariants() const;

 private:
  // All but the tokens, in one cache line: with many entries, each that is touched costs a miss.
  struct alignas(64) Entry {
    Hash128 hash;
    Hash128 parent_hash;
    EntrySerial serial{0};
    EntrySerial parent{0};
    std::unique_ptr<const std::vector<std::uint8_t>> extras;  // null: none
    EntryId namesake{};                                       // ring of the entries of one hash
  };
  // One word of the table: the upper half of hash.lo and the entry; entry < 0 is empty. The home slot follows
  // from the tag, so that moving slots up after an erasure reads no entry.
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
  [[nodiscard]] std::span<const std::uint8_t> extras_of(EntryId entry) const noexcept;
  [[nodiscard]] std::optional<EntryId> occupy_slot(EntryId entry) noexcept;
  void leave_ring(EntryId entry) noexcept;
  void check_ring(EntryId entry) const;

  std::int32_t block_size_;
  std::size_t mask_;
  std::vector<Slot> slots_;  // a power of two, at most half full
  std::vector<Entry> entries_;
  std::vector<std::int32_t> tokens_;  // [entry][block_size]
  std::vector<EntryId> unused_;
  std::uint64_t last_serial_ = 0;
  std::int32_t size_ = 0;
};

}  // namespace airi
