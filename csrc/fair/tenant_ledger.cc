#include "fair/tenant_ledger.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"

namespace airi {
namespace {

constexpr std::int64_t kRebaseAbove = std::int64_t{1} << 60;
// Where counters stop: a tenant so far ahead of V waits for ever anyway, and no sum of two overflows.
constexpr std::int64_t kMostService = std::int64_t{1} << 61;
// Spares nearly every charge a division.
constexpr auto kFitsAtAnyWeight =
    static_cast<std::int64_t>(static_cast<double>(kMostService) * TenantWeight::kMin) / TenantWeight::kOne;

}  // namespace

TenantWeight::TenantWeight(double weight) {
  if (!(weight >= kMin && weight <= kMax)) {
    throw InvalidArgument("weight must lie in [1/1024, 1024], got " + std::to_string(weight));
  }
  cost_of_unit_ = std::llround(static_cast<double>(kOne) / weight);
}

TenantLedger::TenantLedger(std::size_t max_idle)
    : max_idle_(max_idle),
      backlog_(ByStanding{}, PlaceIn{&backlog_places_}),
      idle_(ByStanding{}, PlaceIn{&idle_places_}) {}

TenantLedger::Standing TenantLedger::standing_of(std::int32_t t) const noexcept {
  const Tenant& tenant = tenants_[static_cast<std::size_t>(t)];
  return {tenant.counter, tenant.head, t};
}

TenantLedger::Standing TenantLedger::idle_standing_of(std::int32_t t) const noexcept {
  const Tenant& tenant = tenants_[static_cast<std::size_t>(t)];
  return {tenant.counter, {TimePoint{}, RequestId{raw(tenant.id)}}, t};
}

// V follows the smallest backlogged counter and never falls. Idle tenants it has passed would be
// lifted to it anyway: forgetting them loses nothing.
void TenantLedger::raise_virtual_time() {
  if (!backlog_.empty()) virtual_time_ = std::max(virtual_time_, backlog_.top().counter);
  while (!idle_.empty() && idle_.top().counter <= virtual_time_) forget(idle_.top().tenant);
}

void TenantLedger::forget(std::int32_t t) {
  idle_.remove(idle_standing_of(t));
  by_id_.erase(tenants_[static_cast<std::size_t>(t)].id);
  unused_.push_back(t);
}

TenantIndex TenantLedger::enter(TenantId id, TenantWeight weight, const HeadKey& head) {
  auto [known, is_new] = by_id_.try_emplace(id, 0);
  if (is_new) {
    if (unused_.empty()) {
      unused_.push_back(static_cast<std::int32_t>(tenants_.size()));
      tenants_.emplace_back();
      backlog_places_.push_back(kOutsideHeap);
      idle_places_.push_back(kOutsideHeap);
    }
    known->second = unused_.back();
    unused_.pop_back();
    tenants_[static_cast<std::size_t>(known->second)] = Tenant{};
  }
  const std::int32_t t = known->second;
  Tenant& tenant = tenants_[static_cast<std::size_t>(t)];
  AIRI_CHECK(!is_backlogged(t)) << "tenant " << raw(id) << " is backlogged already";
  if (!is_new && idle_places_[static_cast<std::size_t>(t)] != kOutsideHeap) {
    idle_.remove(idle_standing_of(t));
  }
  tenant.id = id;
  tenant.cost_of_unit = weight.cost_of_unit();
  tenant.head = head;
  tenant.counter = std::max(tenant.counter, virtual_time_);
  backlog_.push(standing_of(t));
  raise_virtual_time();
  return TenantIndex{t};
}

void TenantLedger::set_head(TenantIndex tenant, const HeadKey& head) {
  tenants_[index(tenant)].head = head;
  backlog_.update(standing_of(raw(tenant)));
}

void TenantLedger::leave(TenantIndex tenant) {
  backlog_.remove(standing_of(raw(tenant)));
  raise_virtual_time();
  retire_if_idle(raw(tenant));
}

void TenantLedger::begin_work(TenantIndex tenant) { ++tenants_[index(tenant)].running; }

void TenantLedger::end_work(TenantIndex t) {
  Tenant& tenant = tenants_[index(t)];
  AIRI_CHECK(tenant.running > 0) << "tenant " << raw(tenant.id) << " has no running work";
  --tenant.running;
  retire_if_idle(raw(t));
}

void TenantLedger::retire_if_idle(std::int32_t t) {
  const Tenant& tenant = tenants_[static_cast<std::size_t>(t)];
  if (tenant.running > 0 || is_backlogged(t)) return;
  if (backlog_.empty()) virtual_time_ = std::max(virtual_time_, tenant.counter);
  idle_.push(idle_standing_of(t));
  raise_virtual_time();
  if (idle_.size() <= max_idle_) return;
  lost_debt_ = std::min(lost_debt_ + idle_.top().counter - virtual_time_, kMostService);
  forget(idle_.top().tenant);
}

void TenantLedger::advance(TenantIndex t, const HeadKey& head, std::int64_t service) {
  tenants_[index(t)].head = head;
  charge(t, service);
}

void TenantLedger::charge(TenantIndex t, std::int64_t service) {
  AIRI_DCHECK(service >= 0) << "service " << service;
  Tenant& tenant = tenants_[index(t)];
  const bool fits = service <= kFitsAtAnyWeight || service <= kMostService / tenant.cost_of_unit;
  tenant.counter =
      std::min(tenant.counter + (fits ? service * tenant.cost_of_unit : kMostService), kMostService);
  if (is_backlogged(raw(t))) {
    backlog_.update(standing_of(raw(t)));
    raise_virtual_time();
  }
  // Near V == 0 it would change nothing, at O(tenants).
  if (tenant.counter > kRebaseAbove && virtual_time_ > kRebaseAbove / 2) rebase();
}

void TenantLedger::set_weight(TenantId id, TenantWeight weight) {
  const auto known = by_id_.find(id);
  if (known == by_id_.end()) return;
  tenants_[static_cast<std::size_t>(known->second)].cost_of_unit = weight.cost_of_unit();
}

std::optional<TenantIndex> TenantLedger::next() const {
  if (backlog_.empty()) return std::nullopt;
  return TenantIndex{backlog_.top().tenant};
}

std::optional<TenantIndex> TenantLedger::find(TenantId tenant) const {
  const auto known = by_id_.find(tenant);
  if (known == by_id_.end()) return std::nullopt;
  return TenantIndex{known->second};
}

void TenantLedger::rebase() {
  const auto shift = [this](auto& holder) { holder.counter -= virtual_time_; };
  for (const auto& [id, t] : by_id_) shift(tenants_[static_cast<std::size_t>(t)]);
  backlog_.change_all(shift);
  idle_.change_all(shift);
  total_shift_ += static_cast<std::uint64_t>(virtual_time_);
  virtual_time_ = 0;
}

void TenantLedger::check_invariants() const {
  backlog_.check_invariants();
  idle_.check_invariants();
  for (const Standing& s : backlog_.items()) {
    const Tenant& tenant = tenants_[static_cast<std::size_t>(s.tenant)];
    AIRI_CHECK(s.counter == tenant.counter && s.head == tenant.head) << "tenant stands elsewhere";
    AIRI_CHECK(s.counter >= virtual_time_) << "tenant below V";
  }
  for (const Standing& s : idle_.items()) {
    const Tenant& tenant = tenants_[static_cast<std::size_t>(s.tenant)];
    AIRI_CHECK(s.counter == tenant.counter) << "idle tenant stands elsewhere";
    AIRI_CHECK(s.counter > virtual_time_) << "idle tenant without a debt";
    AIRI_CHECK(tenant.running == 0 && !is_backlogged(s.tenant)) << "idle tenant with work";
  }
  AIRI_CHECK(idle_.size() <= max_idle_) << idle_.size() << " idle tenants";
  AIRI_CHECK(by_id_.size() + unused_.size() == tenants_.size()) << "tenant slots leak";
}

}  // namespace airi
