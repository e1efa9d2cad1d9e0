#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"
#include "sched/step_time.h"

namespace airi {

// How long a simulated step takes: the larger of two linear pieces, as StepTimeModel fits them, one for
// steps bound by memory and one for steps bound by arithmetic; and how steps lie around each. Learns nothing.
//
// Thread safety: immutable.
struct StepCost {
  std::array<StepTimePiece, 2> pieces;
  // Of each piece, quantiles, evenly apart and ascending, of what its steps take over what is expected of
  // them. None: just that.
  std::array<std::vector<double>, 2> ratios;

  // Whole microseconds, at least 1, of one step. `number`: any that tells it from others; the same step takes
  // the same time each time it is asked for.
  [[nodiscard]] Micros micros(const StepWork& work, std::uint64_t number) const noexcept {
    const double memory = pieces[0].micros(work);
    const double arithmetic = pieces[1].micros(work);
    return whole(memory > arithmetic ? memory * ratio(ratios[0], number)
                                     : arithmetic * ratio(ratios[1], number));
  }
  // No step of this work, or more, is shorter.
  [[nodiscard]] Micros least_micros(const StepWork& work) const noexcept {
    double least = 1;
    for (const auto& of_piece : ratios) least = of_piece.empty() ? least : std::min(least, of_piece.front());
    return whole(std::max(pieces[0].micros(work), pieces[1].micros(work)) * least);
  }

 private:
  static Micros whole(double micros) noexcept {
    return std::clamp<Micros>(std::llround(std::min(micros, 1e15)), 1, kMaxMicros);
  }
  static double ratio(const std::vector<double>& ratios, std::uint64_t number) noexcept {
    if (ratios.empty()) return 1;
    // SplitMix64 (Steele, Lea, Flood 2014): consecutive numbers give what passes for chance.
    number = (number + 1) * 0x9e3779b97f4a7c15U;
    number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9U;
    number = (number ^ (number >> 27)) * 0x94d049bb133111ebU;
    const double place = static_cast<double>((number ^ (number >> 31)) >> 11) * 0x1p-53;
    return ratios[static_cast<std::size_t>(place * static_cast<double>(ratios.size()))];
  }
};

}  // namespace airi
