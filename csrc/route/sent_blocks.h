#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/time.h"
#include "route/block_locations.h"

namespace airi::route {

// Blocks that one request brought to a replica, in order of sending; never given twice.
enum class SentId : std::uint64_t {};

// What was sent to replicas and is not told to be stored yet, as marks in BlockLocations: for a time and a
// number of blocks at most, the oldest going first. A hash belongs to the request that brought it first.
//
// Thread safety: none.
// Invariant: hashes and requests that are kept are `max_blocks` together at most.
class SentBlocks {
 public:
  // `locations` must outlive this.
  SentBlocks(BlockLocations& locations, Micros ttl, std::int64_t max_blocks)
      : locations_(locations), ttl_(ttl), max_blocks_(max_blocks) {}
  SentBlocks(const SentBlocks&) = delete;
  SentBlocks& operator=(const SentBlocks&) = delete;

  // Marks what the replica neither has nor was sent. REQUIRES: `now` is no earlier than in calls before.
  SentId add(ReplicaSlot replica, std::span<const Hash128> hashes, TimePoint now);
  // Takes the marks back: the request will not bring them. Nothing where they are gone already.
  void take_back(SentId id);
  // The replica is gone, and its marks with it.
  void forget(ReplicaSlot replica);
  // Takes back what was sent more than the time to live ago.
  void expire(TimePoint now);

  // Of the hashes that the request brought, in order, those behind the first `done`: how many are no longer
  // marked, from there on. Where they are kept no more: 0.
  [[nodiscard]] std::size_t num_arrived(SentId id, std::size_t done) const noexcept;

  [[nodiscard]] std::int64_t num_kept() const noexcept { return num_kept_; }

 private:
  struct Group {
    ReplicaSlot replica{};
    TimePoint expires{};
    std::vector<Hash128> hashes;
  };

  [[nodiscard]] const Group* find(SentId id) const noexcept;
  void unmark(Group& group);
  void drop_oldest();

  // Immutable after construction.
  BlockLocations& locations_;
  Micros ttl_;
  std::int64_t max_blocks_;

  std::deque<Group> groups_;  // [first_, first_ + size)
  std::uint64_t first_ = 0;
  std::int64_t num_kept_ = 0;  // groups, and their hashes
};

}  // namespace airi::route
