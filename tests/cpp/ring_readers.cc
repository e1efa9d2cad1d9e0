#include "ring_readers.h"

#include <algorithm>

#include "base/check.h"

namespace airi::testing {

KvFollower::Place KvFollower::place(const KvEvent& event) {
  return {raw(event.model), static_cast<std::int32_t>(event.tier), event.hash.lo, event.hash.hi};
}

void KvFollower::apply(const KvEvent& event) {
  if (event.kind == KvEventKind::kStored) {
    const bool is_new = known_.emplace(place(event), Parent{event.parent.lo, event.parent.hi}).second;
    AIRI_CHECK(is_new) << "a hash was stored twice";
  } else {
    AIRI_CHECK(event.kind == KvEventKind::kRemoved);
    AIRI_CHECK(known_.erase(place(event)) == 1) << "a hash was removed that was not there";
  }
}

void KvFollower::follow(const Runtime& runtime, std::size_t num_models, std::size_t most) {
  if (!runtime.kv_events().enabled()) return;
  std::vector<KvEvent> events(most);
  const RingRead read = runtime.kv_events().read(cursor_, events);
  AIRI_CHECK(cursor_ + read.missed + read.count == read.cursor) << "records got lost";
  cursor_ = read.cursor;
  if (read.missed > 0) return start_again(runtime, num_models);
  for (std::size_t i = 0; i < read.count; ++i) apply(events[i]);
  if (!is_behind(runtime)) compare(runtime, num_models);
}

void KvFollower::start_again(const Runtime& runtime, std::size_t num_models) {
  known_.clear();
  for (std::size_t i = 0; i < num_models; ++i) {
    const KvSnapshot snapshot = runtime.kv_snapshot(ModelId{static_cast<std::int32_t>(i)});
    for (const KvEvent& event : snapshot.stored) apply(event);
    cursor_ = snapshot.cursor;
  }
}

void KvFollower::compare(const Runtime& runtime, std::size_t num_models) const {
  Known told;
  for (std::size_t i = 0; i < num_models; ++i) {
    const KvSnapshot snapshot = runtime.kv_snapshot(ModelId{static_cast<std::int32_t>(i)});
    AIRI_CHECK(snapshot.cursor == cursor_);
    for (const KvEvent& event : snapshot.stored) {
      AIRI_CHECK(told.emplace(place(event), Parent{event.parent.lo, event.parent.hi}).second)
          << "a snapshot has a hash twice";
    }
  }
  AIRI_CHECK(std::ranges::equal(told, known_))
      << "a snapshot has " << told.size() << " hashes, who followed knows " << known_.size();
}

void DecisionFollower::follow(const Runtime& runtime, std::size_t most) {
  std::vector<DecisionRecord> records(most);
  const RingRead read = runtime.decisions().read(cursor_, records);
  AIRI_CHECK(cursor_ + read.missed + read.count == read.cursor) << "records got lost";
  cursor_ = read.cursor;
  missed_ += read.missed;
  for (std::size_t i = 0; i < read.count; ++i) {
    const std::int32_t decision = records[i].decision;
    AIRI_CHECK(decision > 0 && decision <= raw(Decision::kRefusedModelGone));
    submitted_ += decision == raw(Decision::kSubmitted) ? 1 : 0;
    finished_ += decision >= raw(Decision::kFinishedStop) && decision <= raw(Decision::kFinishedNeverFits);
  }
}

void DecisionFollower::check_counts(std::int64_t num_submitted, std::int64_t num_ended) const {
  if (missed_ > 0 || cursor_ == 0) return;
  AIRI_CHECK(finished_ == num_ended) << finished_ << " ends recorded of " << num_ended;
  // Those that a model which went away never queued are missing.
  AIRI_CHECK(submitted_ <= num_submitted) << submitted_ << " requests recorded of " << num_submitted;
}

}  // namespace airi::testing
