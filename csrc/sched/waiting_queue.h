#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/indexed_heap.h"
#include "fair/tenant_ledger.h"
#include "fair/tenant_weights.h"
#include "sched/priority.h"
#include "sched/request.h"

namespace airi {

// The waiting requests of one model in order of decision: band, then tenant by ledger, then
// arrival and id. Never owns requests; never knows blocks or slots.
//
// A dispatched request keeps charging the ledger of the band it was dispatched from, until
// end_work().
//
// Thread safety: none.
// Invariant: a request is queued in exactly the band it stands in; a tenant is backlogged in a
// band's ledger iff it has a request there.
class WaitingQueue {
 public:
  // `weights` must outlive the queue.
  WaitingQueue(std::int32_t num_bands, AgingRule aging, const TenantWeights& weights);
  WaitingQueue(const WaitingQueue&) = delete;
  WaitingQueue& operator=(const WaitingQueue&) = delete;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

  // Queues a request that waits from `since` on. A preempted one keeps its arrival and what it
  // has waited. O(log n).
  void push(Request* request, TimePoint since);

  // Moves requests up the bands they have aged out of. O(log n) each; none where aging is off.
  void promote(TimePoint now);

  // The request to dispatch next, or null where none waits. O(number of bands).
  [[nodiscard]] Request* head() const;

  // Takes a request out to run it and charges its tenant `service`. O(log n).
  void dispatch(Request* request, std::int64_t service, TimePoint now);
  // Takes a request out for good. O(log n).
  void remove(Request* request);
  // A dispatched request stopped running: finished, or preempted. For the latter call push() too.
  void end_work(Request* request);

  // Adds service to the tenant's counter. REQUIRES: the request was dispatched.
  void charge(const Request* request, std::int64_t service) {
    bands_[static_cast<std::size_t>(request->band)].ledger.charge(request->ledger_tenant, service);
  }
  [[nodiscard]] std::int64_t counter(const Request* request) const {
    return bands_[static_cast<std::size_t>(request->band)].ledger.counter(request->ledger_tenant);
  }
  // The tenant's entry in the table of weights has changed.
  void reweigh(TenantId tenant);

  // Requests of `band` in order of decision as of now, until visit(request) returns false or
  // `limit` were seen. visit must not change the queue.
  template <class Visit>
  void visit_in_order(std::int32_t band, std::size_t limit, Visit visit) {
    Band& b = bands_[static_cast<std::size_t>(band)];
    bool more = true;
    b.ledger.visit_in_order(limit, [&](TenantIndex tenant) {
      b.queues[index(tenant)].visit_in_order(limit, frontier_, [&](Request* request) {
        more = limit-- > 0 && visit(request);
        return more;
      });
      return more;
    });
  }

  [[nodiscard]] const TenantLedger& ledger(std::int32_t band) const {
    return bands_.at(static_cast<std::size_t>(band)).ledger;
  }
  void check_invariants() const;

 private:
  struct QueuePlace {
    HeapPlace& operator()(Request* r) const noexcept { return r->queue_place; }
  };
  struct AgingPlace {
    HeapPlace& operator()(Request* r) const noexcept { return r->aging_place; }
  };
  struct ByPromotion {
    AgingRule aging;
    [[nodiscard]] TimePoint due(const Request* r) const noexcept {
      return r->waiting_since + (aging.wait_to_leave(r->first_band, r->band) - r->waited);
    }
    bool operator()(const Request* a, const Request* b) const noexcept {
      const TimePoint x = due(a);
      const TimePoint y = due(b);
      return x != y ? x < y : a->id < b->id;
    }
  };
  using TenantQueue = IndexedHeap<Request*, ByArrival, QueuePlace>;
  struct Band {
    TenantLedger ledger;
    std::vector<TenantQueue> queues;  // by TenantIndex
  };

  void enqueue(Request* request);
  void dequeue(Request* request, std::int64_t service);

  AgingRule aging_;
  const TenantWeights& weights_;
  std::deque<Band> bands_;                                     // a deque: ledgers do not move
  IndexedHeap<Request*, ByPromotion, AgingPlace> promotions_;  // queued requests that may age
  std::vector<std::uint32_t> frontier_;
  std::size_t size_ = 0;
};

}  // namespace airi
