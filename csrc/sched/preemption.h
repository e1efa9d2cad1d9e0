#pragma once

#include <cstdint>

#include "base/ids.h"
#include "base/time.h"

namespace airi {

// What the choice of a victim looks at.
struct VictimKey {
  std::int32_t band = 0;
  std::int64_t counter = 0;       // normalised service of its tenant
  std::int64_t lost_tokens = 0;   // computed, and not to survive as CACHED
  std::int64_t freed_blocks = 0;  // held by it alone
  TimePoint arrival{};
  RequestId id{};
};

// True iff `a` is to be preempted rather than `b`: the larger band, then the tenant most over its
// share, then the least lost work per freed block, then the later arrival (ties: larger id).
// A strict total order of requests.
[[nodiscard]] bool goes_before(const VictimKey& a, const VictimKey& b) noexcept;

}  // namespace airi
