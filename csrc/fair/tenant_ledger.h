#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/indexed_heap.h"
#include "base/time.h"

namespace airi {

// A tenant's weight as the normalised service one unit of service costs it: 2^20 / weight,
// rounded. Counters are integers, so shifting all of them changes no decision.
class TenantWeight {
 public:
  static constexpr double kMin = 1.0 / 1024;
  static constexpr double kMax = 1024.0;
  // What a unit of service costs at weight 1.
  static constexpr std::int64_t kOne = std::int64_t{1} << 20;

  constexpr TenantWeight() = default;
  // Throws InvalidArgument outside [kMin, kMax].
  explicit TenantWeight(double weight);

  [[nodiscard]] std::int64_t cost_of_unit() const noexcept { return cost_of_unit_; }

 private:
  std::int64_t cost_of_unit_ = kOne;
};

// A tenant's place in a ledger while the ledger has state of it.
enum class TenantIndex : std::int32_t {};

// What breaks ties between tenants of equal counters: the head of their queue.
struct HeadKey {
  TimePoint arrival{};
  RequestId id{};
  friend auto operator<=>(const HeadKey&, const HeadKey&) = default;
};

// Virtual token counters of the tenants of one (model, band): who is next. Never knows
// requests beyond their tie key, blocks or steps.
//
// counter = service / weight. The next tenant is the backlogged one with the smallest counter. A
// tenant that becomes backlogged is lifted to the virtual time V: the smallest counter of a
// backlogged tenant, or, with none, the largest value V has had and any tenant has left with.
// V never falls, so idling earns no credit.
//
// Thread safety: none.
// Invariant: V <= counter of every backlogged tenant; idle tenants held have counter > V.
class TenantLedger {
 public:
  // Idle tenants whose counters exceed V are remembered, `max_idle` of them at most; beyond that
  // the smallest debt is dropped and added to lost_debt().
  explicit TenantLedger(std::size_t max_idle = 65'536);
  TenantLedger(const TenantLedger&) = delete;
  TenantLedger& operator=(const TenantLedger&) = delete;

  // The tenant's queue got its first request. Returns its index, valid until it has neither a
  // queue nor running work.
  TenantIndex enter(TenantId tenant, TenantWeight weight, const HeadKey& head);
  // The head of a backlogged tenant's queue changed.
  void set_head(TenantIndex tenant, const HeadKey& head);
  // The tenant's queue is empty. Call begin_work first where its last request was dispatched.
  void leave(TenantIndex tenant);

  // One request of the tenant was dispatched, or stopped running for whatever reason.
  void begin_work(TenantIndex tenant);
  void end_work(TenantIndex tenant);

  // A request was dispatched and `head` is next in the tenant's queue: set_head and charge in one.
  void advance(TenantIndex tenant, const HeadKey& head, std::int64_t service);

  // Adds `service` units. REQUIRES: service >= 0; the tenant has a queue or running work.
  void charge(TenantIndex tenant, std::int64_t service);
  void set_weight(TenantId tenant, TenantWeight weight);

  // The backlogged tenant to serve next. O(1).
  [[nodiscard]] std::optional<TenantIndex> next() const;

  // Backlogged tenants in order of service until visit(index) returns false or `limit` were seen.
  template <class Visit>
  void visit_in_order(std::size_t limit, Visit visit) {
    backlog_.visit_in_order(limit, frontier_,
                            [&](const Standing& s) { return visit(TenantIndex{s.tenant}); });
  }

  // Calls visit(index), in no order, for every backlogged tenant whose counter is smaller than `limit`.
  // O(tenants visited). visit must not change the ledger.
  template <class Visit>
  void visit_below(std::int64_t limit, Visit visit) const {
    backlog_.visit_while([=](const Standing& s) { return s.counter < limit; },
                         [&](const Standing& s) { visit(TenantIndex{s.tenant}); });
  }

  // Normalised service: 2^20 units are one unit of service at weight 1.
  [[nodiscard]] std::int64_t counter(TenantIndex tenant) const { return tenants_[index(tenant)].counter; }
  [[nodiscard]] TenantId tenant(TenantIndex t) const { return tenants_[index(t)].id; }
  [[nodiscard]] bool has_queue(TenantIndex t) const { return is_backlogged(raw(t)); }
  [[nodiscard]] bool has_running_work(TenantIndex t) const { return tenants_[index(t)].running > 0; }
  [[nodiscard]] std::optional<TenantIndex> find(TenantId tenant) const;
  [[nodiscard]] std::int64_t virtual_time() const noexcept { return virtual_time_; }
  // What rebase() has subtracted from every counter since the beginning, modulo 2^64.
  [[nodiscard]] std::uint64_t total_shift() const noexcept { return total_shift_; }
  [[nodiscard]] std::size_t num_backlogged() const noexcept { return backlog_.size(); }
  [[nodiscard]] std::size_t num_known() const noexcept { return by_id_.size(); }
  [[nodiscard]] std::int64_t lost_debt() const noexcept { return lost_debt_; }

  // Subtracts V from every counter, so that they never overflow. Changes no decision. Called by
  // charge() long before counters could; public for tests. O(tenants).
  void rebase();

  // Throws InvariantError naming the first broken invariant. O(tenants).
  void check_invariants() const;

 private:
  struct Tenant {
    std::int64_t counter = 0;
    HeadKey head;
    std::int64_t cost_of_unit = 0;
    std::int32_t running = 0;
    TenantId id{};
  };
  // What orders a tenant in a heap, beside the others': a comparison touches no Tenant.
  struct Standing {
    std::int64_t counter = 0;
    HeadKey head;  // idle tenants: the tenant's id in place of a request's
    std::int32_t tenant = 0;
  };
  struct ByStanding {
    bool operator()(const Standing& a, const Standing& b) const noexcept {
      return a.counter != b.counter ? a.counter < b.counter : a.head < b.head;
    }
  };
  struct PlaceIn {
    std::vector<HeapPlace>* places;
    HeapPlace& operator()(const Standing& s) const noexcept {
      return (*places)[static_cast<std::size_t>(s.tenant)];
    }
  };
  using TenantHeap = IndexedHeap<Standing, ByStanding, PlaceIn>;

  [[nodiscard]] bool is_backlogged(std::int32_t t) const noexcept {
    return backlog_places_[static_cast<std::size_t>(t)] != kOutsideHeap;
  }
  [[nodiscard]] Standing standing_of(std::int32_t t) const noexcept;
  [[nodiscard]] Standing idle_standing_of(std::int32_t t) const noexcept;
  void raise_virtual_time();
  void retire_if_idle(std::int32_t tenant);
  void forget(std::int32_t tenant);

  std::size_t max_idle_;
  std::vector<Tenant> tenants_;
  std::vector<std::int32_t> unused_;
  std::unordered_map<TenantId, std::int32_t> by_id_;
  std::vector<HeapPlace> backlog_places_;  // by tenant
  std::vector<HeapPlace> idle_places_;     // by tenant
  TenantHeap backlog_;
  TenantHeap idle_;
  std::vector<std::uint32_t> frontier_;
  std::int64_t virtual_time_ = 0;
  std::uint64_t total_shift_ = 0;
  std::int64_t lost_debt_ = 0;
};

}  // namespace airi
