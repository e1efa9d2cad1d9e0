#include "sched/prefix_order.h"

#include "base/check.h"

namespace airi {

// What the tenant has been served in all, but for a constant: differences are what counts.
std::uint64_t PrefixOrder::served(TenantIndex tenant) const {
  return static_cast<std::uint64_t>(ledger_.counter(tenant)) + ledger_.total_shift();
}

PrefixOrder::Entry PrefixOrder::candidate_of(TenantIndex t) const {
  const Tenant& tenant = tenants_[index(t)];
  const bool is_due = served(t) - tenant.served >= static_cast<std::uint64_t>(deficits_.quantum());
  return is_due ? entry_of(tenant.oldest) : tenant.by_match.top();
}

void PrefixOrder::set_oldest(TenantIndex t, Request* oldest) {
  Tenant& tenant = tenants_[index(t)];
  if (tenant.oldest == oldest) return;
  tenant.oldest = oldest;
  tenant.served = served(t);
}

void PrefixOrder::refresh(TenantIndex tenant) { deficits_.offer(tenant, candidate_of(tenant).candidate); }

void PrefixOrder::add(Request* request, Request* oldest) {
  const TenantIndex t = request->ledger_tenant;
  if (index(t) >= tenants_.size()) tenants_.resize(index(t) + 1);
  tenants_[index(t)].by_match.push(entry_of(request));
  set_oldest(t, oldest);
  refresh(t);
}

void PrefixOrder::remove(Request* request, Request* oldest) {
  const TenantIndex t = request->ledger_tenant;
  tenants_[index(t)].by_match.remove(entry_of(request));
  set_oldest(t, oldest);
  if (oldest == nullptr) {
    deficits_.withdraw(t);
  } else {
    refresh(t);
  }
}

void PrefixOrder::rematched(Request* request) {
  tenants_[index(request->ledger_tenant)].by_match.update(entry_of(request));
  refresh(request->ledger_tenant);
}

// A tenant whose oldest request has become due since offers less than before: the first is known once the one
// that comes first offers what it has.
Request* PrefixOrder::first() {
  while (const auto tenant = deficits_.next()) {
    const Entry entry = candidate_of(*tenant);
    if (entry.candidate == deficits_.next_candidate()) return entry.request;
    deficits_.offer(*tenant, entry.candidate);
  }
  return nullptr;
}

std::optional<TenantIndex> PrefixOrder::prepare_first() const {
  const auto next = deficits_.likely_next();
  if (next) __builtin_prefetch(tenants_[index(*next)].by_match.items().data());
  return next;
}

void PrefixOrder::check_invariants() const {
  deficits_.check_invariants();
  std::size_t backlogged = 0;
  for (const Tenant& tenant : tenants_) {
    tenant.by_match.check_invariants();
    AIRI_CHECK(tenant.by_match.empty() == (tenant.oldest == nullptr)) << "a tenant's oldest request";
    backlogged += tenant.by_match.empty() ? 0 : 1;
    for (const Entry& entry : tenant.by_match.items()) {
      AIRI_CHECK(entry.candidate.rank == entry.request->num_matched)
          << "request " << raw(entry.request->id) << " matches other than it stands";
    }
  }
  AIRI_CHECK(backlogged == ledger_.num_backlogged()) << "order by prefix and ledger disagree";
}

}  // namespace airi
