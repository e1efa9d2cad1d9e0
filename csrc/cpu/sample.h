#pragma once

#include <cstdint>

#include "cpu/logits.h"

namespace airi::cpu {

// One value per row each. Out of range values switch a filter off: top_k <= 0 or >= vocab,
// top_p >= 1, min_p <= 0. A temperature below kGreedyTemperature means greedy.
struct SampleArgs {
  const float* temperature = nullptr;
  const std::int32_t* top_k = nullptr;
  const float* top_p = nullptr;
  const float* min_p = nullptr;
  const std::uint64_t* seed = nullptr;
  const std::int32_t* draw = nullptr;
  std::int32_t* out_tokens = nullptr;
  std::uint8_t* nan_flags = nullptr;
};

inline constexpr float kGreedyTemperature = 1e-5F;

// Picks a token per row. Greedy: the greatest logit, the lowest id among equals. Else the
// distribution softmax(logits / temperature), cut in this order:
//   min_p  keeps tokens at least min_p times as probable as the most probable one;
//   top_k  keeps the top_k greatest logits and all equal to the last of them;
//   top_p  of what is left, keeps the fewest most probable tokens whose probabilities,
//          renormalised, sum to at least top_p; equal ones by ascending id; at least one.
// The token is the argmax of logit / temperature + Gumbel noise over the tokens kept,
// where the noise of token t is word t % 4 of Philox4x32-10 with the row's seed as key and
// the counter (t / 4, draw, 0, 0): a function of the row, its seed and its draw alone.
//
// A row without a distribution (a NaN, plus infinity, or nothing but minus infinity) gets
// nan_flags 1 and token 0, all others nan_flags 0. Throws InvalidArgument.
void sample(const LogitRows& logits, const SampleArgs& args);

}  // namespace airi::cpu
