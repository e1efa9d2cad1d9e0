#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"
#include "sim/log_histogram.h"

namespace airi {

// One stretch of a simulation. Integrals are over all replicas, in microseconds times what they integrate.
struct TimelineBucket {
  std::int64_t accepted = 0, refused = 0, finished = 0;
  std::int64_t prefill_tokens = 0, decode_tokens = 0;
  double running = 0, waiting = 0;  // integrals of requests
  double active_blocks = 0;         // and of blocks
  double busy = 0;                  // and of time in steps
  LogHistogram ttft;                // of first tokens that came out in it
  LogHistogram itl;

  TimelineBucket& operator+=(const TimelineBucket& other);
};

// What a replica does from one moment to another.
struct Span {
  TimePoint from{};
  TimePoint to{};
  std::int64_t running = 0, waiting = 0, active_blocks = 0;
  std::int64_t prefill_tokens = 0, decode_tokens = 0;
};

// A simulation in at most kBuckets stretches of one width. The width doubles whenever the simulation outgrows
// them; moments before 0 count to the first.
//
// Thread safety: none.
class Timeline {
 public:
  static constexpr std::size_t kBuckets = 256;
  static constexpr Micros kLeastWidth = 62'500;

  [[nodiscard]] Micros width() const noexcept { return width_; }
  [[nodiscard]] const std::vector<TimelineBucket>& buckets() const noexcept { return buckets_; }

  // The bucket that holds `now`. Valid until the next call.
  TimelineBucket& at(TimePoint now);
  // Spreads the span over the buckets that it crosses; its tokens count where it ends.
  void add(const Span& span);
  // Adds what another one holds. Gives the same in any order.
  void merge(const Timeline& other);

 private:
  std::size_t place_of(TimePoint now);
  void halve();

  Micros width_ = kLeastWidth;
  std::vector<TimelineBucket> buckets_;
};

}  // namespace airi
