#include "sched/inbox.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace airi {

Inbox::Put Inbox::put(std::unique_ptr<Request>& request) {
  const MutexLock lock(mu_);
  if (waiting_ + static_cast<std::int64_t>(mail_.requests.size()) >= max_queued_) {
    return Put::kFull;
  }
  if (!live_.try_emplace(request->id, last_serial_ + 1).second) return Put::kDuplicate;
  request->serial = ++last_serial_;
  mail_.requests.push_back(std::move(request));
  return Put::kAccepted;
}

bool Inbox::cancel(RequestId id) {
  const MutexLock lock(mu_);
  const auto live = live_.find(id);
  if (live == live_.end()) return false;
  mail_.cancels.push_back({id, live->second});
  return true;
}

void Inbox::note_refusal(const DecisionRecord& refusal) {
  const MutexLock lock(mu_);
  if (mail_.refusals.size() < kMaxRefusals) mail_.refusals.push_back(refusal);
}

void Inbox::set_weight(TenantId tenant, TenantWeight weight) {
  const MutexLock lock(mu_);
  mail_.weights.emplace_back(tenant, weight);
}

void Inbox::report(std::span<const TransferReport> reports) {
  const MutexLock lock(mu_);
  mail_.transfers.insert(mail_.transfers.end(), reports.begin(), reports.end());
}

void Inbox::set_quota(const Quota& quota) {
  if (quota.blocks < 0) {
    throw InvalidArgument("a quota must be at least 0 blocks, got " + std::to_string(quota.blocks));
  }
  const MutexLock lock(mu_);
  const auto of_model = std::ranges::count(quotas_, quota.model, &Quota::model);
  const auto known = std::ranges::find_if(
      quotas_, [&](const Quota& q) { return q.model == quota.model && q.tenant == quota.tenant; });
  if (quota.blocks == 0) {
    if (known != quotas_.end()) quotas_.erase(known);
  } else if (known != quotas_.end()) {
    known->blocks = quota.blocks;
  } else if (of_model < static_cast<std::ptrdiff_t>(QuotaCounts::kMaxTenants)) {
    quotas_.push_back(quota);
  } else {
    throw InvalidArgument("at most " + std::to_string(QuotaCounts::kMaxTenants) +
                          " tenants of a model can have a quota");
  }
  mail_.quotas.push_back(quota);
}

std::int64_t Inbox::kept_for_others(ModelId model, TenantId tenant) const {
  const MutexLock lock(mu_);
  std::int64_t kept = 0;
  for (const Quota& quota : quotas_) {
    if (quota.model == model && quota.tenant != tenant) kept += quota.blocks;
  }
  return kept;
}

void Inbox::take(Mail& mail) {
  const MutexLock lock(mu_);
  std::swap(mail_, mail);
  waiting_ += static_cast<std::int64_t>(mail.requests.size());
}

void Inbox::settle(std::int64_t waiting, std::span<const RequestId> ended) {
  const MutexLock lock(mu_);
  waiting_ = waiting;
  for (const RequestId id : ended) live_.erase(id);
}

bool Inbox::has_live() const {
  const MutexLock lock(mu_);
  return !live_.empty();
}

}  // namespace airi
