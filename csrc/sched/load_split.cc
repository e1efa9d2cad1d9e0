#include "sched/load_split.h"

#include <algorithm>

#include "base/ids.h"

namespace airi {
namespace {

double chunk_micros(const StepTimeModel& model, std::int32_t from, std::int32_t count) noexcept {
  const double tokens = count;
  return model.estimate({.tokens = count, .seqs = 1, .prefill_pairs = tokens * (from + tokens / 2)});
}

}  // namespace

double prefill_micros(const StepTimeModel& model, std::int32_t from, std::int32_t to,
                      std::int32_t chunk) noexcept {
  double micros = 0;
  for (std::int32_t at = from; at < to; at += chunk) {
    micros += chunk_micros(model, at, std::min(chunk, to - at));
  }
  return micros;
}

std::int32_t best_load(const StepTimeModel& model, const LoadableSpan& span,
                       const std::function<double(std::int32_t)>& load_micros) {
  const auto total = [&](std::int32_t blocks) {
    const double load = blocks > 0 ? load_micros(blocks) : 0;
    return load + prefill_micros(model, span.start + blocks * span.block_size, span.length, span.chunk);
  };
  std::int32_t best = 0;
  double least = total(0);
  const auto consider = [&](std::int32_t blocks) {
    const double micros = total(blocks);
    if (micros >= least) return;
    best = blocks;
    least = micros;
  };
  const std::int32_t uncomputed = span.length - span.start;
  // The fewest blocks to load that leave this many steps.
  const auto least_for = [&](std::int32_t steps) {
    return ceil_div(std::max(uncomputed - steps * span.chunk, 0), span.block_size);
  };
  const std::int32_t most_steps = ceil_div(uncomputed, span.chunk);
  const std::int32_t least_steps = ceil_div(uncomputed - span.num_blocks * span.block_size, span.chunk);
  for (std::int32_t steps = least_steps; steps <= most_steps; ++steps) {
    if (steps > least_steps + 1 && steps < most_steps - 1) continue;
    std::int32_t low = least_for(steps);
    std::int32_t high = steps > 1 ? std::min(least_for(steps - 1) - 1, span.num_blocks) : span.num_blocks;
    if (low > high) continue;
    consider(high);
    while (low < high) {
      const std::int32_t middle = low + (high - low) / 2;
      if (total(middle) <= total(middle + 1)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    consider(low);
  }
  return best;
}

}  // namespace airi
