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

std::int32_t Runtime::capacity(ModelId model) const {
  const std::shared_ptr<const ModelLimits> limits = limits_of(model);
  if (limits != nullptr) return limits->capacity;
  throw InvalidArgument("model must be a model of this runtime, got " + std::to_string(raw(model)));
}

void Runtime::take_quotas() {
  for (const Inbox::Quota& quota : mail_.quotas) {
    Hosted& model = models_[index(quota.model)];
    if (!model.scheduler) continue;
    model.scheduler->set_quota(quota.tenant, quota.blocks);
    std::int32_t& known = model.room.quotas[quota.tenant];
    model.room.kept += quota.blocks - known;
    model.room.has_shrunk = model.room.has_shrunk || quota.blocks > known;
    known = quota.blocks;
    if (quota.blocks > 0) continue;
    model.room.quotas.erase(quota.tenant);
    for (const auto& [id, request] : requests_) {
      if (request->model == quota.model && request->tenant == quota.tenant) request->quota_group = kNoQuota;
    }
  }
}

// Quotas, or models, that came after its submit keep for others what it needs: it could wait for ever.
bool Runtime::never_fits(const Request& request) const {
  const Hosted& model = models_[index(request.model)];
  const std::int64_t blocks = ceil_div<std::int64_t>(request.max_length, model.config.block_size);
  const std::int64_t beside_all = model.room.capacity - model.room.kept;
  if (blocks <= beside_all) return false;
  const auto own = model.room.quotas.find(request.tenant);
  return blocks > beside_all + (own == model.room.quotas.end() ? 0 : own->second);
}

void Runtime::end_what_never_fits() {
  if (std::ranges::none_of(models_, [](const Hosted& model) { return model.room.has_shrunk; })) return;
  std::vector<RequestId> doomed;
  for (const auto& [id, request] : requests_) {
    if (models_[index(request->model)].room.has_shrunk && never_fits(*request)) doomed.push_back(id);
  }
  std::ranges::sort(doomed);
  for (const RequestId id : doomed) drop(requests_.at(id).get(), FinishReason::kNeverFits);
  for (Hosted& model : models_) model.room.has_shrunk = false;
}

}  // namespace airi
