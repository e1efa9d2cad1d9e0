#include "sim/timeline.h"

#include <algorithm>
#include <utility>

#include "sim/add_members.h"

namespace airi {

TimelineBucket& TimelineBucket::operator+=(const TimelineBucket& other) {
  using B = TimelineBucket;
  add_members(*this, other, &B::accepted, &B::refused, &B::finished, &B::prefill_tokens, &B::decode_tokens,
              &B::running, &B::waiting, &B::active_blocks, &B::busy, &B::ttft, &B::itl);
  return *this;
}

void Timeline::halve() {
  width_ *= 2;
  const std::size_t half = (buckets_.size() + 1) / 2;
  for (std::size_t i = 0; i < half; ++i) {
    if (i > 0) buckets_[i] = std::move(buckets_[2 * i]);
    if (2 * i + 1 < buckets_.size()) buckets_[i] += buckets_[2 * i + 1];
  }
  buckets_.resize(half);
}

std::size_t Timeline::place_of(TimePoint now) {
  const Micros since = std::max<Micros>(static_cast<std::int64_t>(now), 0);
  while (since / width_ >= static_cast<Micros>(kBuckets)) halve();
  const auto place = static_cast<std::size_t>(since / width_);
  if (place >= buckets_.size()) buckets_.resize(place + 1);
  return place;
}

TimelineBucket& Timeline::at(TimePoint now) { return buckets_[place_of(now)]; }

void Timeline::add(const Span& span) {
  const std::size_t last = place_of(span.to);
  buckets_[last].prefill_tokens += span.prefill_tokens;
  buckets_[last].decode_tokens += span.decode_tokens;
  const std::size_t first = place_of(span.from);
  for (std::size_t i = first; i <= last; ++i) {
    const TimePoint begin = i == first ? span.from : TimePoint{static_cast<Micros>(i) * width_};
    const TimePoint end = i == last ? span.to : TimePoint{static_cast<Micros>(i + 1) * width_};
    const auto time = static_cast<double>(end - begin);
    TimelineBucket& bucket = buckets_[i];
    bucket.running += time * static_cast<double>(span.running);
    bucket.waiting += time * static_cast<double>(span.waiting);
    bucket.active_blocks += time * static_cast<double>(span.active_blocks);
    bucket.busy += time;
  }
}

void Timeline::merge(const Timeline& other) {
  while (width_ < other.width_) halve();
  for (std::size_t i = 0; i < other.buckets_.size(); ++i) {
    at(TimePoint{static_cast<Micros>(i) * other.width_}) += other.buckets_[i];
  }
}

}  // namespace airi
