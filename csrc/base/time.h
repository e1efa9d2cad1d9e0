#pragma once

#include <cstdint>

namespace airi {

// A length of time in microseconds.
using Micros = std::int64_t;

// The longest length of time and the farthest moment from the epoch, on either side, that the
// core accepts: 285 years, so that sums of a few of them and 64 bands of aging never overflow.
inline constexpr Micros kMaxMicros = Micros{1} << 53;

// A moment in microseconds since an epoch of the caller's choice. The core reads
// no clock: every moment it knows was handed to it.
enum class TimePoint : std::int64_t {};

[[nodiscard]] constexpr TimePoint operator+(TimePoint t, Micros d) noexcept {
  return static_cast<TimePoint>(static_cast<std::int64_t>(t) + d);
}

[[nodiscard]] constexpr Micros operator-(TimePoint a, TimePoint b) noexcept {
  return static_cast<std::int64_t>(a) - static_cast<std::int64_t>(b);
}

}  // namespace airi
