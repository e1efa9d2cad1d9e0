#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

namespace airi {

// How measurements lie around what was expected of them: a histogram of their ratios, in buckets of 1.5 %, of
// which older ones fade, a batch at a time.
//
// Thread safety: none.
// Invariant: every count is finite and at least 0.
class RatioSketch {
 public:
  static constexpr std::size_t kBuckets = 144;
  using State = std::array<double, kBuckets + 1>;  // counts, then how many came since counts faded

  // REQUIRES: `ratio` is positive and finite. What lies outside [1/2, 4) counts as the end next to it.
  void add(double ratio) noexcept {
    if (++state_.back() == kBatch) {
      for (double& value : state_) value *= kKept;
      state_.back() = 0;
    }
    const double bucket = (std::log2(ratio) - kLowest) * kPerOctave;
    state_[static_cast<std::size_t>(std::clamp(bucket, 0.0, double{kBuckets} - 1))] += 1;
  }

  // The ratio that this share of measurements, in [0, 1], lies below; 1 before the first of them.
  [[nodiscard]] double quantile(double share) const noexcept {
    double total = 0;
    for (std::size_t i = 0; i < kBuckets; ++i) total += state_[i];
    if (total == 0) return 1;
    double left = share * total;
    std::size_t bucket = 0;
    while (bucket + 1 < kBuckets && left > state_[bucket]) left -= state_[bucket++];
    const double inside = state_[bucket] > 0 ? std::min(left / state_[bucket], 1.0) : 0;
    return std::exp2(kLowest + (static_cast<double>(bucket) + inside) / kPerOctave);
  }

  RatioSketch() = default;
  // True iff a sketch may have this state.
  [[nodiscard]] static bool is_valid(const State& state) noexcept {
    return std::ranges::all_of(state, [](double value) { return value >= 0 && std::isfinite(value); }) &&
           state.back() < kBatch && state.back() == std::floor(state.back());
  }
  // REQUIRES: is_valid(state).
  explicit RatioSketch(const State& state) noexcept : state_(state) {}
  [[nodiscard]] const State& state() const noexcept { return state_; }

 private:
  static constexpr double kLowest = -1;  // of log2
  static constexpr double kPerOctave = 48;
  static constexpr double kBatch = 64;
  static constexpr double kKept = 0.9685;  // of what is older, per batch: half of it after 1,400

  State state_{};
};

}  // namespace airi
