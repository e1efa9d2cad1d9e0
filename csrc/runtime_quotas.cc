// Occupancy quotas: what a tenant keeps of a model's KV memory whatever others need.

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "runtime.h"

namespace airi {

void Runtime::set_kv_quota(TenantId tenant, ModelId model, std::int32_t blocks) {
  if (limits_of(model) == nullptr) {
    throw InvalidArgument("model must be a model of this runtime, got " + std::to_string(raw(model)));
  }
  inbox_.set_quota({.model = model, .tenant = tenant, .blocks = blocks});
}

void Runtime::take_quotas() {
  for (const Inbox::Quota& quota : mail_.quotas) {
    Hosted& model = models_[index(quota.model)];
    if (model.scheduler) model.scheduler->set_quota(quota.tenant, quota.blocks);
  }
}

// Quotas, or models, that came after its submit keep for others what it needs: it could wait for ever.
bool Runtime::never_fits(const Request& request) const {
  const ModelLimits& limits = *limits_of(request.model);
  const std::int64_t blocks = ceil_div<std::int64_t>(request.max_length, limits.chain->block_size());
  return blocks > limits.capacity - inbox_.kept_for_others(request.model, request.tenant);
}

void Runtime::end_what_never_fits() {
  std::vector<RequestId> doomed;
  for (const auto& [id, request] : requests_) {
    if (never_fits(*request)) doomed.push_back(id);
  }
  std::ranges::sort(doomed);
  for (const RequestId id : doomed) drop(requests_.at(id).get(), FinishReason::kNeverFits);
}

}  // namespace airi
