#pragma once

#include <unordered_map>

#include "base/ids.h"
#include "fair/tenant_ledger.h"

namespace airi {

// The weights an operator has given to tenants; every other tenant weighs 1.
//
// Thread safety: none.
class TenantWeights {
 public:
  void set(TenantId tenant, TenantWeight weight) { weights_.insert_or_assign(tenant, weight); }

  [[nodiscard]] TenantWeight of(TenantId tenant) const {
    const auto known = weights_.find(tenant);
    return known == weights_.end() ? TenantWeight{} : known->second;
  }

 private:
  std::unordered_map<TenantId, TenantWeight> weights_;
};

}  // namespace airi
