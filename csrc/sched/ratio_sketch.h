#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

namespace airi {

// How measurements lie around what was expected of them: a histogram of their ratios, in buckets of 1.5 %, of
// which older ones fade.
//
// Thread safety: none.
// Invariant: every count is finite and at least 0.
class RatioSketch {
 public:
  static constexpr std::size_t kBuckets = 144;
  using State = std::array<double, kBuckets>;

  // REQUIRES: `ratio` is positive and finite. What lies outside [1/2, 4) counts as the end next to it.
  void add(double ratio) noexcept {
    for (double& count : counts_) count *= kKept;
    const double bucket = (std::log2(ratio) - kLowest) * kPerOctave;
    counts_[static_cast<std::size_t>(std::clamp(bucket, 0.0, double{kBuckets} - 1))] += 1;
  }

  // The ratio that this share of measurements, in [0, 1], lies below; 1 before the first of them.
  [[nodiscard]] double quantile(double share) const noexcept {
    double total = 0;
    for (const double count : counts_) total += count;
    if (total == 0) return 1;
    double left = share * total;
    std::size_t bucket = 0;
    while (bucket + 1 < kBuckets && left > counts_[bucket]) left -= counts_[bucket++];
    const double inside = counts_[bucket] > 0 ? std::min(left / counts_[bucket], 1.0) : 0;
    return std::exp2(kLowest + (static_cast<double>(bucket) + inside) / kPerOctave);
  }

  RatioSketch() = default;
  // REQUIRES: no value of `state` is negative or infinite.
  explicit RatioSketch(const State& state) noexcept : counts_(state) {}
  [[nodiscard]] const State& state() const noexcept { return counts_; }

 private:
  static constexpr double kLowest = -1;  // of log2
  static constexpr double kPerOctave = 48;
  static constexpr double kKept = 0.9995;  // of what is older, per measurement

  State counts_{};
};

}  // namespace airi
