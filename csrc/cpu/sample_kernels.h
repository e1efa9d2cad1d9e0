#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace airi::cpu {

// Logits of one row are visited in blocks of this many tokens; a block whose maximum is
// below what matters is skipped.
inline constexpr int kSampleBlock = 64;

struct RowScan {
  float max;            // NaN-free logits only
  std::int32_t argmax;  // the lowest id of that value
  bool nan;
};

struct Partition {
  int above;
  int below;
  double mass_above;
};

// Which tokens take part: those above `threshold`, and those equal to it up to last_tie.
struct PickArgs {
  float inverse_temperature;
  float threshold;
  std::int32_t last_tie;
  std::int32_t start;  // a token that takes part, best the most probable one
  std::uint64_t seed;
  std::uint32_t draw;
};

// `x` is one row of `v` logits, `maxima` has an entry for each of its blocks. Output arrays
// have room for kSampleSlack floats more than they receive.
inline constexpr int kSampleSlack = 16;

struct SampleKernels {
  // Fills `maxima`.
  RowScan (*scan)(const float* x, int v, float* maxima);
  // Sum of exp((x - offset) * factor) over n values.
  double (*sum_exp)(const float* x, int n, float offset, float factor);
  // Copies the values >= bound to out, in order; returns how many.
  int (*collect)(const float* x, int v, const float* maxima, float bound, float* out);
  // Copies the values > pivot to above and those < pivot to below; mass as sum_exp.
  Partition (*partition)(const float* x, int n, float pivot, float offset, float factor, float* above,
                         float* below);
  int (*count_above)(const float* x, int v, float bound);
  // The id with the greatest x * inverse_temperature + Gumbel noise of those that take part.
  std::int32_t (*pick)(const float* x, int v, const float* maxima, const PickArgs& args);
};

AIRI_DECLARE_KERNELS(SampleKernels, kSampleKernels);

}  // namespace airi::cpu
