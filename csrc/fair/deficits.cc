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
  return {offers_[index(tenant)], ledger_.counter(tenant), raw(tenant)};
}

std::int64_t Deficits::threshold() const noexcept {
  return threshold_ - static_cast<std::int64_t>(ledger_.total_shift() - shift_);
}

std::int64_t Deficits::deficit(TenantIndex tenant) const { return threshold() - ledger_.counter(tenant); }

// The ledger has shifted all counters alike, which changes no order.
void Deficits::follow_rebase() {
  if (ledger_.total_shift() == shift_) return;
  threshold_ = threshold();
  shift_ = ledger_.total_shift();
  eligible_.change_all([this](Standing& s) { s.counter = ledger_.counter(TenantIndex{s.tenant}); });
}

// Puts the tenant where its counter and candidate say.
void Deficits::settle(TenantIndex tenant) {
  const Standing standing = standing_of(tenant);
  const bool stands = places_[index(tenant)] != kOutsideHeap;
  if (standing.counter >= threshold_) {
    if (stands) eligible_.remove(standing);
  } else if (stands) {
    eligible_.update(standing);
  } else {
    eligible_.push(standing);
  }
}

void Deficits::offer(TenantIndex tenant, const Candidate& candidate) {
  follow_rebase();
  if (index(tenant) >= places_.size()) {
    places_.resize(index(tenant) + 1, kOutsideHeap);
    offers_.resize(index(tenant) + 1);
  }
  offers_[index(tenant)] = candidate;
  settle(tenant);
}

void Deficits::withdraw(TenantIndex tenant) {
  follow_rebase();
  if (places_[index(tenant)] != kOutsideHeap) eligible_.remove(standing_of(tenant));
}

void Deficits::charged(TenantIndex tenant) {
  follow_rebase();
  settle(tenant);
}

std::optional<TenantIndex> Deficits::next() {
  follow_rebase();
  if (eligible_.empty()) refill();
  if (eligible_.empty()) return std::nullopt;
  return TenantIndex{eligible_.top().tenant};
}

// The smallest number of quanta that makes one eligible, at once. A tenant enters the heap again only after a
// charge has taken it out, so that this costs O(log n) for each of those.
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
  std::size_t eligible = 0;
  ledger_.visit_below(threshold(), [&](TenantIndex tenant) {
    ++eligible;
    AIRI_CHECK(index(tenant) < places_.size() && places_[index(tenant)] != kOutsideHeap)
        << "tenant " << raw(ledger_.tenant(tenant)) << " has a deficit and no place";
  });
  AIRI_CHECK(eligible == eligible_.size())
      << eligible_.size() << " places, " << eligible << " with a deficit";
  for (const Standing& s : eligible_.items()) {
    const std::int64_t shifted = s.counter - static_cast<std::int64_t>(ledger_.total_shift() - shift_);
    AIRI_CHECK(shifted == ledger_.counter(TenantIndex{s.tenant})) << "a tenant's deficit stands elsewhere";
  }
  AIRI_CHECK(ledger_.virtual_time() >= threshold() - quantum_)
      << "an idle tenant would get more than a quantum";
}

}  // namespace airi
