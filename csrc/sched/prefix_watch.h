#pragma once

#include <cstddef>
#include <vector>

#include "kv/hash_chain.h"
#include "sched/request.h"

namespace airi {

// Which waiting requests would match one block more if a block of some hash were published: the one after
// those they match. Never looks at blocks; never owns requests.
//
// Thread safety: none.
// Invariant: a watched request is listed once, under hashes[num_matched]; nothing else is listed.
class PrefixWatch {
 public:
  // REQUIRES: the request is not watched, and hashes[num_matched] exists. O(1); may allocate.
  void watch(Request* request);
  // REQUIRES: the request is watched, and num_matched is what it was then. O(1).
  void unwatch(Request* request);
  // Takes out the requests that wait for the hash: the first of a list by watch_next, or null. O(1), and one
  // probe of the table where there is none; O(requests) otherwise.
  [[nodiscard]] Request* take(const Hash128& hash);

  [[nodiscard]] bool empty() const noexcept { return num_lists_ == 0; }

  // Throws InvariantError naming the first broken invariant. O(table).
  void check_invariants() const;

 private:
  // One list by hash; an empty slot has none.
  struct Slot {
    Hash128 hash;
    Request* first = nullptr;
  };

  [[nodiscard]] std::size_t mask() const noexcept { return slots_.size() - 1; }
  [[nodiscard]] std::size_t find(const Hash128& hash) const noexcept;
  void erase(std::size_t slot);
  void grow();

  std::vector<Slot> slots_ = std::vector<Slot>(64);  // a power of two, at most half full
  std::size_t num_lists_ = 0;
};

}  // namespace airi
