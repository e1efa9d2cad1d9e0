#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kv/hash_chain.h"
#include "sched/request.h"

namespace airi {

// Which waiting requests would match one block more if a block of some hash were published: the one after
// those they match. Never looks at blocks; never owns requests.
//
// Thread safety: none.
// Invariant: a watched request is listed once, under hashes[num_matched]; nothing else is listed. What became
// due is due until it is unwatched, or dismissed.
class PrefixWatch {
 public:
  // REQUIRES: the request is not watched, and hashes[num_matched] exists. O(1); may allocate.
  void watch(Request* request);
  // REQUIRES: the request is watched, and num_matched is what it was then. O(1).
  void unwatch(Request* request);
  // A block of this hash was published: what waits for it is due. One probe of the table.
  void note_published(const Hash128& hash);
  // A request that is due, or null: of those that wait for the hash that became due last, the one that is
  // watched for the longest time. It is due until it is unwatched. O(1), amortised.
  [[nodiscard]] Request* first_due();
  // Those that wait for the same hash as first_due() are not due any more. REQUIRES: there is one.
  void dismiss_due();

  [[nodiscard]] bool empty() const noexcept { return unused_.size() == lists_.size(); }

  // Throws InvariantError naming the first broken invariant. O(table).
  void check_invariants() const;

 private:
  static constexpr std::int32_t kEmpty = -1;
  // The requests that wait for one hash, in the order of watch().
  struct List {
    Hash128 hash;
    Request* first = nullptr;
    Request* last = nullptr;
    bool is_due = false;
  };
  // One word of the table: the upper half of hash.lo and the list; list < 0 is empty. Most hashes that are
  // published have no list, which is then known without touching any: with many that wait, each is a miss.
  struct Slot {
    std::uint32_t tag = 0;
    std::int32_t list = kEmpty;
  };

  static std::uint32_t tag_of(const Hash128& hash) noexcept {
    return static_cast<std::uint32_t>(hash.lo >> 32);
  }
  [[nodiscard]] std::size_t mask() const noexcept { return slots_.size() - 1; }
  [[nodiscard]] List& list(const Slot& slot) noexcept { return lists_[static_cast<std::size_t>(slot.list)]; }
  [[nodiscard]] const List& list(const Slot& slot) const noexcept {
    return lists_[static_cast<std::size_t>(slot.list)];
  }
  [[nodiscard]] std::size_t find(const Hash128& hash) const noexcept;
  void add_list(const Hash128& hash);
  void erase(std::size_t slot);
  void grow();

  std::vector<Slot> slots_ = std::vector<Slot>(64);  // a power of two, at most half full
  std::vector<List> lists_;
  std::vector<std::int32_t> unused_;  // of lists_
  std::vector<Hash128> due_;          // every hash with a list that is due, and some that have none any more
};

}  // namespace airi
