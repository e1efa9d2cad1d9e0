#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "base/time.h"
#include "sched/step_time.h"

namespace airi {

// How long a simulated step takes: the larger of two linear pieces, as StepTimeModel fits them, one for
// steps bound by memory and one for steps bound by arithmetic. Learns nothing.
//
// Thread safety: immutable.
struct StepCost {
  std::array<StepTimePiece, 2> pieces;

  // Whole microseconds, at least 1.
  [[nodiscard]] Micros micros(const StepWork& work) const noexcept {
    const double estimate = std::max(pieces[0].micros(work), pieces[1].micros(work));
    return std::clamp<Micros>(std::llround(std::min(estimate, 1e15)), 1, kMaxMicros);
  }
};

}  // namespace airi
