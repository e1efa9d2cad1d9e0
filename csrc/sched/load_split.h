#pragma once

#include <cstdint>
#include <functional>

#include "sched/step_time.h"

namespace airi {

// A request's known tokens without KV on the device, the front of which a tier has.
struct LoadableSpan {
  std::int32_t start = 0;       // tokens before it that need nothing; a whole number of blocks
  std::int32_t num_blocks = 0;  // the tier has this many blocks from there on
  std::int32_t length = 0;      // known tokens; more than start + num_blocks * block_size
  std::int32_t block_size = 0;
  std::int32_t chunk = 0;  // tokens that one step may compute
};

// Microseconds that prefilling tokens [from, to) takes, in steps of `chunk` tokens with nothing beside them.
[[nodiscard]] double prefill_micros(const StepTimeModel& model, std::int32_t from, std::int32_t to,
                                    std::int32_t chunk) noexcept;

// How many leading blocks of the span to load so that load and recomputation of the rest end soonest; 0 where
// loading gains nothing. `load_micros` gives the time to load that many; it must not fall. O(log) estimates
// of whole prefills.
//
// Where the rest takes a given number of steps, the last one hides some of its tokens behind the step's fixed
// cost: up to there computing is free, beyond it costs by the token, so a binary search finds the best
// number. Full steps are alike, and later ones cost more: what pays for one of them pays for all after it. So
// only the least and the largest numbers of steps are looked at, and those beside them.
[[nodiscard]] std::int32_t best_load(const StepTimeModel& model, const LoadableSpan& span,
                                     const std::function<double(std::int32_t)>& load_micros);

}  // namespace airi
