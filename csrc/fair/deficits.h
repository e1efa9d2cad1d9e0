#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/indexed_heap.h"
#include "fair/tenant_ledger.h"

namespace airi {

// What a backlogged tenant would have served next.
struct Candidate {
  std::int32_t rank = 0;  // larger goes first
  HeadKey key;            // breaks ties of rank and counter
  friend bool operator==(const Candidate&, const Candidate&) = default;
};

// Who is next among the tenants of one ledger where candidates may bend its order: of the tenants that have a
// deficit left, the one whose candidate ranks highest. Never knows what a rank means, nor requests or blocks.
//
// A tenant's deficit is how far its counter stands below a threshold; charging its counter is what takes from
// it, and needs no word here: what has been charged since is noticed when a tenant comes first. Where no
// backlogged tenant has any, the threshold rises by quanta until one has: a refill of all. As the ledger
// lifts whoever joins to V, and V stands at most a quantum below the threshold, an idle tenant never has more
// than a quantum.
//
// Thread safety: none.
// Invariant: V >= threshold - quantum; every backlogged tenant whose counter < threshold stands in the order,
// by a counter that it has had.
class Deficits {
 public:
  // `quantum` in units of the ledger's counters, at least 1. `ledger` must outlive this.
  Deficits(TenantLedger& ledger, std::int64_t quantum);
  Deficits(const Deficits&) = delete;
  Deficits& operator=(const Deficits&) = delete;

  // The tenant, which is backlogged in the ledger, has this candidate from now on. O(log n).
  void offer(TenantIndex tenant, const Candidate& candidate);
  // The tenant is about to leave the backlog. O(log n).
  void withdraw(TenantIndex tenant);
  // The tenant to serve next; refills where none is eligible. O(log n) for each tenant that was charged since
  // it came first, and O(eligible) for a refill.
  [[nodiscard]] std::optional<TenantIndex> next();

  // The tenant that next() will most likely return: it does, unless that one was charged meanwhile.
  [[nodiscard]] std::optional<TenantIndex> likely_next() const noexcept {
    if (eligible_.empty()) return std::nullopt;
    return TenantIndex{eligible_.top().tenant};
  }
  // What the tenant may still take; not positive: nothing before a refill.
  [[nodiscard]] std::int64_t deficit(TenantIndex tenant) const;
  // The candidate of the tenant that next() has returned. REQUIRES: it did, and nothing has changed since.
  [[nodiscard]] Candidate next_candidate() const { return {eligible_.top().rank, eligible_.top().key}; }
  [[nodiscard]] std::int64_t quantum() const noexcept { return quantum_; }
  // Refills since the beginning; several at once count as many.
  [[nodiscard]] std::int64_t num_refills() const noexcept { return num_refills_; }

  // Throws InvariantError naming the first broken invariant. O(tenants).
  void check_invariants() const;

 private:
  // What orders an eligible tenant, beside the others': a comparison touches nothing else. Half a cache line.
  struct Standing {
    std::int32_t rank = 0;
    std::int32_t tenant = 0;
    std::int64_t counter = 0;
    HeadKey key;
  };
  struct ByStanding {
    bool operator()(const Standing& a, const Standing& b) const noexcept {
      if (a.rank != b.rank) return a.rank > b.rank;
      return a.counter != b.counter ? a.counter < b.counter : a.key < b.key;
    }
  };
  struct PlaceIn {
    std::vector<HeapPlace>* places;
    HeapPlace& operator()(const Standing& s) const noexcept {
      return (*places)[static_cast<std::size_t>(s.tenant)];
    }
  };

  [[nodiscard]] Standing standing_of(TenantIndex tenant) const;
  [[nodiscard]] std::int64_t threshold() const noexcept;
  void follow_rebase();
  void refill();

  TenantLedger& ledger_;
  std::int64_t quantum_;
  std::int64_t threshold_ = 0;     // as counters stood when shift_ was read
  std::uint64_t shift_ = 0;        // the ledger's total shift that threshold_ and standings take in
  std::vector<Candidate> offers_;  // by tenant
  std::vector<HeapPlace> places_;  // by tenant
  IndexedHeap<Standing, ByStanding, PlaceIn> eligible_;
  std::int64_t num_refills_ = 0;
};

}  // namespace airi
