#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kv/hash_chain.h"
#include "kv/kv_events.h"

namespace airi::route {

// Replicas at most: each is a bit.
inline constexpr std::size_t kMaxReplicas = 64;

// The place of a replica among others, below kMaxReplicas. Used again once its replica is forgotten.
enum class ReplicaSlot : std::int32_t {};

// Blocks from the beginning of a chain that a replica has.
struct PrefixMatch {
  std::int32_t stored = 0;    // told by its events
  std::int32_t expected = 0;  // stored, or sent to it
};

// Which replica has which block hashes, as KV events tell it: one table for all, from a hash to a bit per
// replica and tier, and to a bit per replica for what was sent to it and is not stored yet. Only knows what
// it is told; never guesses.
//
// Thread safety: none.
// Invariant: a replica has at most its capacity of hashes, sent ones aside; a hash that nobody has takes no
// place. What the table says is stored was told to be, and was not told to be removed since.
class BlockLocations {
 public:
  BlockLocations() : slots_(kLeastSlots) {}

  // Hashes that may be stored in this replica, in any tier; further ones are not noted. 0 at first.
  void set_capacity(ReplicaSlot replica, std::int64_t blocks) { capacity_[index(replica)] = blocks; }

  // What the replica's events say of its model, in their order. A hash that is stored is no longer sent.
  // Amortised O(1) each.
  void apply(ReplicaSlot replica, ModelId model, std::span<const KvEvent> events);

  // Forgets what the replica has stored, in every tier: a snapshot follows. O(memory).
  void forget_stored(ReplicaSlot replica);
  // Forgets the replica, and gives memory back that nobody needs any more. O(memory).
  void forget(ReplicaSlot replica);

  // Notes that the hash was sent to the replica. False where it has it, or was sent it, already.
  bool mark_sent(ReplicaSlot replica, const Hash128& hash);
  void unmark_sent(ReplicaSlot replica, const Hash128& hash);
  [[nodiscard]] bool is_sent(ReplicaSlot replica, const Hash128& hash) const noexcept;

  // How many blocks from the chain's beginning each replica of the mask has; others are left alone. One walk
  // for all, up to where the last one ends.
  void match(std::span<const Hash128> chain, std::uint64_t replicas,
             std::array<PrefixMatch, kMaxReplicas>& out) const noexcept;

  [[nodiscard]] std::int64_t num_stored(ReplicaSlot replica) const noexcept {
    return num_stored_[index(replica)];
  }
  // Hashes that were told to be stored beyond the replica's capacity.
  [[nodiscard]] std::int64_t num_left_out(ReplicaSlot replica) const noexcept {
    return num_left_out_[index(replica)];
  }
  [[nodiscard]] std::size_t num_hashes() const noexcept { return size_; }
  [[nodiscard]] std::size_t memory_bytes() const noexcept { return slots_.size() * sizeof(Entry); }

  // Throws InvariantError naming the first broken invariant. O(memory).
  void check_invariants() const;

 private:
  static constexpr std::size_t kTiers = 3;
  static constexpr std::size_t kLeastSlots = 1024;

  // Bits by replica. None at all: the place is free.
  struct Entry {
    Hash128 hash;
    std::array<std::uint64_t, kTiers> stored{};
    std::uint64_t sent = 0;

    [[nodiscard]] std::uint64_t anywhere() const noexcept { return stored[0] | stored[1] | stored[2]; }
    [[nodiscard]] bool is_free() const noexcept { return (anywhere() | sent) == 0; }
  };

  [[nodiscard]] std::size_t home(const Hash128& hash) const noexcept {
    return static_cast<std::size_t>(hash.lo) & (slots_.size() - 1);
  }
  [[nodiscard]] std::size_t next(std::size_t place) const noexcept {
    return (place + 1) & (slots_.size() - 1);
  }
  // Where the hash is, or the free place where it would be.
  [[nodiscard]] std::size_t find(const Hash128& hash) const noexcept;
  [[nodiscard]] Entry& find_or_insert(const Hash128& hash);
  void erase_if_free(std::size_t place) noexcept;
  void note_stored(ReplicaSlot replica, std::size_t tier, const Hash128& hash);
  void note_removed(ReplicaSlot replica, std::size_t tier, const Hash128& hash) noexcept;
  void clear(ReplicaSlot replica, bool also_sent);
  void rebuild(std::size_t num_slots);

  std::vector<Entry> slots_;  // open addressing, linear probing; a power of two
  std::size_t size_ = 0;
  std::array<std::int64_t, kMaxReplicas> capacity_{};
  std::array<std::int64_t, kMaxReplicas> num_stored_{};
  std::array<std::int64_t, kMaxReplicas> num_left_out_{};
};

}  // namespace airi::route
