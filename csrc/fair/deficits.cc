#include "fair/deficits.h"

#include "base/check.h"

namespace airi {

Deficits::Deficits(TenantLedger& ledger, std::int64_t quantum)
    : ledger_(ledger),
      quantum_(quantum),
      threshold_(ledger.virtual_time()),
      shift_(ledger.total_shift()),
      eligible_(ByStanding{}, PlaceIn{&places_}) {
  AIRI_CHECK(quantum >= 1) << "a quantum of " << quantum;
}

Deficits::Standing Deficits::standing_of(TenantIndex tenant) const {
  const Candidate& offer = offers_[index(tenant)];
  return {offer.rank, raw(tenant), ledger_.counter(tenant), offer.key};
}

std::int64_t Deficits::threshold() const noexcept {
  return threshold_ - static_cast<std::int64_t>(ledger_.total_shift() - shift_);
}

std::int64_t Deficits::deficit(TenantIndex tenant) const { return threshold() - ledger_.counter(tenant); }

// The ledger has shifted all counters alike, which changes no order.
void Deficits::follow_rebase() {
  const auto shift = static_cast<std::int64_t>(ledger_.total_shift() - shift_);
  if (shift == 0) return;
  threshold_ -= shift;
  shift_ = ledger_.total_shift();
  eligible_.change_all([=](Standing& s) { s.counter -= shift; });
}

void Deficits::offer(TenantIndex tenant, const Candidate& candidate) {
  follow_rebase();
  if (index(tenant) >= places_.size()) {
    places_.resize(index(tenant) + 1, kOutsideHeap);
    offers_.resize(index(tenant) + 1);
  }
  offers_[index(tenant)] = candidate;
  const Standing standing = standing_of(tenant);
  if (places_[index(tenant)] != kOutsideHeap) {
    eligible_.update(standing);
  } else if (standing.counter < threshold_) {
    eligible_.push(standing);
  }
}

void Deficits::withdraw(TenantIndex tenant) {
  if (places_[index(tenant)] != kOutsideHeap) eligible_.remove(standing_of(tenant));
}

// A charge only ever moves a tenant back, so the first is known once the one on top stands where it should.
std::optional<TenantIndex> Deficits::next() {
  follow_rebase();
  while (true) {
    if (eligible_.empty()) refill();
    if (eligible_.empty()) return std::nullopt;
    Standing standing = eligible_.top();
    const TenantIndex tenant{standing.tenant};
    standing.counter = ledger_.counter(tenant);
    if (standing.counter >= threshold_) {
      eligible_.remove(standing);
    } else if (standing.counter != eligible_.top().counter) {
      eligible_.update(standing);
    } else {
      return tenant;
    }
  }
}

// The smallest number of quanta that makes one eligible, at once. A tenant enters the heap again only after a
// charge has taken it out, so that this costs O(log n) for each of those. REQUIRES: the heap is empty.
void Deficits::refill() {
  const auto least = ledger_.next();
  if (!least) return;
  const std::int64_t count = (ledger_.counter(*least) - threshold_) / quantum_ + 1;
  threshold_ += count * quantum_;
  num_refills_ += count;
  ledger_.visit_below(threshold_, [this](TenantIndex tenant) { eligible_.push(standing_of(tenant)); });
}

void Deficits::check_invariants() const {
  eligible_.check_invariants();
  ledger_.visit_below(threshold(), [&](TenantIndex tenant) {
    AIRI_CHECK(index(tenant) < places_.size() && places_[index(tenant)] != kOutsideHeap)
        << "tenant " << raw(ledger_.tenant(tenant)) << " has a deficit and no place";
  });
  const auto shift = static_cast<std::int64_t>(ledger_.total_shift() - shift_);
  for (const Standing& s : eligible_.items()) {
    const TenantIndex tenant{s.tenant};
    AIRI_CHECK(ledger_.has_queue(tenant)) << "tenant " << raw(ledger_.tenant(tenant)) << " is not backlogged";
    AIRI_CHECK(s.counter - shift <= ledger_.counter(tenant)) << "a tenant stands behind its counter";
    AIRI_CHECK(Candidate(s.rank, s.key) == offers_[index(tenant)]) << "a tenant stands for another candidate";
  }
  AIRI_CHECK(ledger_.virtual_time() >= threshold() - quantum_)
      << "an idle tenant would get more than a quantum";
}

}  // namespace airi
