#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/indexed_heap.h"
#include "fair/deficits.h"
#include "fair/tenant_ledger.h"
#include "sched/request.h"

namespace airi {

// The order of one band's waiting requests where locality counts: among tenants with a deficit, the request
// that matches the longest cached prefix; then the tenant's counter, arrival, id. It goes by num_matched,
// which is an upper bound: the first() whose bound proves to be exact is the first. Never looks at the cache
// itself.
//
// A tenant's oldest request is passed by its others until the tenant has been served a quantum since it
// became the oldest; then it stands for the tenant.
//
// Thread safety: none.
// Invariant: a tenant has a candidate in the deficits iff it has a request here.
class PrefixOrder {
 public:
  // `quantum` in units of the ledger's counters. `ledger` must outlive this.
  PrefixOrder(TenantLedger& ledger, std::int64_t quantum) : ledger_(ledger), deficits_(ledger, quantum) {}

  // `oldest` is now the oldest request of the tenant, which is backlogged in the ledger. O(log n).
  void add(Request* request, Request* oldest);
  // As add(). Null where none is left: the tenant is about to leave the backlog. O(log n).
  void remove(Request* request, Request* oldest);
  // request->num_matched has changed. O(log n).
  void rematched(Request* request);
  // The first by the bounds, or null; refills deficits where none is left.
  [[nodiscard]] Request* first();

  // The tenant whose request first() will most likely return; what first() looks at is on its way to the
  // caches.
  [[nodiscard]] std::optional<TenantIndex> prepare_first() const;

  [[nodiscard]] const Deficits& deficits() const noexcept { return deficits_; }

  // Throws InvariantError naming the first broken invariant. O(requests).
  void check_invariants() const;

 private:
  // A request with what orders it: a comparison touches nothing else.
  struct Entry {
    Candidate candidate;
    Request* request = nullptr;
  };
  struct ByMatch {
    bool operator()(const Entry& a, const Entry& b) const noexcept {
      if (a.candidate.rank != b.candidate.rank) return a.candidate.rank > b.candidate.rank;
      return a.candidate.key < b.candidate.key;
    }
  };
  struct MatchPlace {
    HeapPlace& operator()(const Entry& e) const noexcept { return e.request->match_place; }
  };
  struct Tenant {
    IndexedHeap<Entry, ByMatch, MatchPlace> by_match;
    Request* oldest = nullptr;
    std::uint64_t served = 0;  // counter and shift of the ledger when `oldest` became the oldest
  };

  static Entry entry_of(Request* request) noexcept {
    return {{request->num_matched, {request->arrival, request->id}}, request};
  }
  [[nodiscard]] std::uint64_t served(TenantIndex tenant) const;
  [[nodiscard]] Entry candidate_of(TenantIndex tenant) const;
  void set_oldest(TenantIndex tenant, Request* oldest);
  void refresh(TenantIndex tenant);

  TenantLedger& ledger_;
  Deficits deficits_;
  std::vector<Tenant> tenants_;  // by TenantIndex
};

}  // namespace airi
