#include "sched/admission.h"

#include <cmath>
#include <string>

#include "base/check.h"

namespace airi {

AdmissionControl::AdmissionControl(AdmissionPolicy policy, std::int32_t capacity, std::int32_t block_size,
                                   double watermark, std::int32_t max_preemptions)
    : policy_(policy), block_size_(block_size), max_preemptions_(max_preemptions) {
  if (!(watermark >= 0.0 && watermark < 1.0)) {
    throw InvalidArgument("watermark must lie in [0, 1), got " + std::to_string(watermark));
  }
  watermark_blocks_ = static_cast<std::int32_t>(std::ceil(watermark * capacity));
}

AdmissionControl::Demand AdmissionControl::demand(const Request& request, std::int32_t num_hits,
                                                  std::int32_t num_hits_cached) const noexcept {
  const bool to_completion = policy_ == AdmissionPolicy::kNoEvict || is_pinned(request);
  const std::int32_t tokens = to_completion ? request.max_length : request.length();
  const std::int32_t reserved = ceil_div(tokens, block_size_);
  return {.blocks = reserved - num_hits + num_hits_cached, .reserved = reserved, .may_grow = !to_completion};
}

std::int32_t AdmissionControl::shortage(const Demand& demand, std::int32_t available,
                                        bool nothing_runs) const noexcept {
  const std::int32_t spare = demand.may_grow && !nothing_runs ? watermark_blocks_ : 0;
  return demand.blocks + spare - (available - outstanding_);
}

void AdmissionControl::admit(Request& request, const Demand& demand) noexcept {
  request.reserved_blocks = demand.reserved;
  outstanding_ += promised(request);
}

void AdmissionControl::grow(const Request& request, std::int32_t count) noexcept {
  outstanding_ -= std::min(count, promised(request));
}

void AdmissionControl::release(Request& request) noexcept {
  outstanding_ -= promised(request);
  request.reserved_blocks = 0;
}

}  // namespace airi
