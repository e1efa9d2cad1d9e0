#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/time.h"

namespace airi {

// Counts of lengths of time in buckets that grow with what they hold, in bounded memory: a quantile is off
// by at most 1/128 of itself, and exact below 128 us. Never keeps a value.
//
// Thread safety: none.
// Invariant: count() is the sum over all buckets; the same values give the same state in any order.
class LogHistogram {
 public:
  LogHistogram() = default;
  LogHistogram(const LogHistogram& other) { *this += other; }
  LogHistogram(LogHistogram&&) = default;
  LogHistogram& operator=(const LogHistogram&) = delete;
  LogHistogram& operator=(LogHistogram&&) = default;

  // Adds `value`, `count` times. What is negative counts as 0, what exceeds kMaxMicros as that.
  void add(Micros value, std::int64_t count = 1);
  LogHistogram& operator+=(const LogHistogram& other);

  [[nodiscard]] std::int64_t count() const noexcept { return count_; }
  [[nodiscard]] Micros max() const noexcept { return max_; }
  // 0 where nothing was added.
  [[nodiscard]] double mean() const noexcept;
  // The smallest value that a share q of all do not exceed, as the middle of its bucket. 0 where nothing was
  // added. REQUIRES: 0 <= q <= 1.
  [[nodiscard]] double quantile(double q) const noexcept;

 private:
  static constexpr int kBits = 6;
  static constexpr std::size_t kPerOctave = std::size_t{1} << kBits;
  static constexpr std::size_t kOctaves = 49;  // up to 2^54
  using Octave = std::array<std::int64_t, kPerOctave>;

  struct Place {
    std::size_t octave;
    std::size_t bucket;
  };
  static Place place_of(Micros value) noexcept;
  static double middle_of(Place place) noexcept;

  std::array<std::unique_ptr<Octave>, kOctaves> octaves_;  // made when a value first falls into them
  std::int64_t count_ = 0;
  double sum_ = 0;  // of whole numbers: exact, and so independent of order, up to 2^53
  Micros min_ = kMaxMicros;
  Micros max_ = 0;
};

}  // namespace airi
