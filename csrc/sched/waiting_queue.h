#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "base/indexed_heap.h"
#include "fair/tenant_ledger.h"
#include "fair/tenant_weights.h"
#include "sched/prefix_order.h"
#include "sched/prefix_watch.h"
#include "sched/priority.h"
#include "sched/request.h"

namespace airi {

// The waiting requests of one model in order of decision: band, then tenant by ledger, then
// arrival and id. Where locality counts, the longest cached prefix goes first among the tenants of
// a band that have a deficit left (PrefixOrder). Never owns requests; never knows blocks or slots.
//
// A dispatched request keeps charging the ledger of the band it was dispatched from, until
// end_work().
//
// Thread safety: none.
// Invariant: a request is queued in exactly the band it stands in; a tenant is backlogged in a
// band's ledger iff it has a request there.
class WaitingQueue {
 public:
  // Of the requests that wait for what was published, how many are matched anew for one step. With no more in
  // the queue, the order is that of what all of them would hit.
  static constexpr std::int32_t kMostCaughtUp = 64;

  // How locality counts.
  struct Locality {
    std::int64_t quantum_tokens = 0;  // of deficits, at weight 1; at least 1
    std::int32_t block_size = 0;
  };

  // `weights` must outlive the queue. Without `locality` prefixes do not count.
  WaitingQueue(std::int32_t num_bands, AgingRule aging, const TenantWeights& weights,
               std::optional<Locality> locality = std::nullopt);
  WaitingQueue(const WaitingQueue&) = delete;
  WaitingQueue& operator=(const WaitingQueue&) = delete;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

  // Tokens of the requests that wait: known ones, and as many as they may come to have.
  [[nodiscard]] std::int64_t num_tokens() const noexcept { return num_tokens_; }
  [[nodiscard]] std::int64_t num_tokens_at_most() const noexcept { return num_tokens_at_most_; }

  // Queues a request that waits from `since` on. A preempted one keeps its arrival and what it
  // has waited. O(log n).
  void push(Request* request, TimePoint since);

  // Moves requests up the bands they have aged out of. O(log n) each; none where aging is off.
  void promote(TimePoint now);

  // The request to dispatch next, or null where none waits. O(number of bands) without locality.
  //
  // With it, match(request) is asked for the leading blocks that the request would hit now, where that is not
  // known: for a new request, one whose next block was published, and one that may have lost some since
  // `version`, a positive number that grows whenever a block is no longer to be hit. Where more than
  // kMostCaughtUp wait for what was published, the others stand where they stood until later steps.
  template <class Match>
  [[nodiscard]] Request* head(std::uint64_t version, Match match) {
    catch_up(version, match);
    for (Band& band : bands_) {
      if (band.ledger.num_backlogged() == 0) continue;
      if (!band.order) return band.queues[index(*band.ledger.next())].top();
      while (true) {
        Request* request = band.order->first();
        if (request->match_version == version) return request;
        request->match_version = version;
        rematch(request, match(*request));
      }
    }
    return nullptr;
  }

  // A step is about to be planned.
  void begin_step() noexcept { left_to_catch_up_ = kMostCaughtUp; }

  // Blocks [first, num_published) of `publisher` can be hit from now on. REQUIRES: locality counts. One probe
  // per block, however many wait for it.
  void note_published(const Request& publisher, std::int32_t first);
  [[nodiscard]] bool locality_counts() const noexcept { return locality_.has_value(); }

  // Moves a waiting request to the last band, behind its class, where it stays until `until` at the longest.
  void make_best_effort(Request* request, TimePoint until);

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

  // Requests of `band` in order of decision as of now, prefixes aside, until visit(request) returns false or
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
      if (is_best_effort(r)) return r->best_effort_until;
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
    std::unique_ptr<PrefixOrder> order;
  };

  [[nodiscard]] static bool is_best_effort(const Request* request) noexcept {
    return request->band > request->first_band;
  }
  void enqueue(Request* request);
  void dequeue(Request* request, std::int64_t service);
  [[nodiscard]] std::int32_t most_to_match(const Request& request) const noexcept;
  void watch(Request* request);
  void rematch(Request* request, std::int32_t num_matched);
  // The one that waits longest for what was published goes first; it stands ahead of the others as it is.
  template <class Match>
  void catch_up(std::uint64_t version, Match& match) {
    for (; left_to_catch_up_ > 0; --left_to_catch_up_) {
      Request* request = watched_.first_due();
      if (request == nullptr) return;
      const std::int32_t before = request->num_matched;
      request->match_version = version;
      rematch(request, match(*request));
      if (request->num_matched == before) watched_.dismiss_due();  // what was published is gone again
    }
  }
  void count(const Request* request, std::int64_t sign) noexcept;

  // Immutable after construction.
  std::optional<Locality> locality_;
  AgingRule aging_;
  const TenantWeights& weights_;

  std::deque<Band> bands_;                                     // a deque: ledgers do not move
  IndexedHeap<Request*, ByPromotion, AgingPlace> promotions_;  // queued requests that may age
  PrefixWatch watched_;
  std::int32_t left_to_catch_up_ = kMostCaughtUp;
  std::vector<std::uint32_t> frontier_;
  std::size_t size_ = 0;
  std::int64_t num_tokens_ = 0;
  std::int64_t num_tokens_at_most_ = 0;
};

}  // namespace airi
