#include "sim/log_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace airi {

// Octave 0 holds 0 .. 63 and octave 1 holds 64 .. 127 one by one; octave k > 1 holds 64 << (k - 1) to twice
// that in 64 buckets of 1 << (k - 1).
LogHistogram::Place LogHistogram::place_of(Micros value) noexcept {
  const auto v = static_cast<std::uint64_t>(value);
  if (v < kPerOctave) return {0, v};
  const int shift = std::bit_width(v) - (kBits + 1);
  return {static_cast<std::size_t>(shift) + 1, (v >> shift) - kPerOctave};
}

double LogHistogram::middle_of(Place place) noexcept {
  if (place.octave == 0) return static_cast<double>(place.bucket);
  const auto width = static_cast<double>(std::uint64_t{1} << (place.octave - 1));
  return static_cast<double>(kPerOctave + place.bucket) * width + (width - 1) / 2;
}

void LogHistogram::add(Micros value, std::int64_t count) {
  value = std::clamp<Micros>(value, 0, kMaxMicros);
  const Place place = place_of(value);
  std::unique_ptr<Octave>& octave = octaves_[place.octave];
  if (octave == nullptr) octave = std::make_unique<Octave>();
  (*octave)[place.bucket] += count;
  count_ += count;
  sum_ += static_cast<double>(value) * static_cast<double>(count);
  min_ = std::min(min_, value);
  max_ = std::max(max_, value);
}

LogHistogram& LogHistogram::operator+=(const LogHistogram& other) {
  for (std::size_t i = 0; i < kOctaves; ++i) {
    if (other.octaves_[i] == nullptr) continue;
    if (octaves_[i] == nullptr) octaves_[i] = std::make_unique<Octave>();
    for (std::size_t j = 0; j < kPerOctave; ++j) (*octaves_[i])[j] += (*other.octaves_[i])[j];
  }
  count_ += other.count_;
  sum_ += other.sum_;
  min_ = std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
  return *this;
}

double LogHistogram::mean() const noexcept { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

double LogHistogram::quantile(double q) const noexcept {
  const auto rank = static_cast<std::int64_t>(std::ceil(q * static_cast<double>(count_)));
  std::int64_t below = 0;
  for (std::size_t i = 0; i < kOctaves; ++i) {
    if (octaves_[i] == nullptr) continue;
    for (std::size_t j = 0; j < kPerOctave; ++j) {
      below += (*octaves_[i])[j];
      if (below == 0 || below < rank) continue;
      return std::clamp(middle_of({i, j}), static_cast<double>(min_), static_cast<double>(max_));
    }
  }
  return 0;
}

}  // namespace airi
