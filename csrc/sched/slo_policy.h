#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "base/time.h"
#include "sched/request.h"
#include "sched/running_set.h"
#include "sched/slo_budget.h"
#include "sched/slo_target.h"
#include "sched/step_time.h"

namespace airi {

// How often promises were kept, since the start.
struct SloCounters {
  std::int64_t first_tokens_on_time = 0, first_tokens_late = 0;
  std::int64_t next_tokens_on_time = 0, next_tokens_late = 0;
  std::int64_t requests_on_time = 0, requests_late = 0;  // all tokens, or not; of those that ran to their end
  std::int64_t best_effort = 0;                          // requests that were found not to make it
  std::int64_t rests = 0;                                // decodes that sat out a step
};

// What the requests of one model are promised, by class, and what that means for its next step: how many
// prefill tokens, which decodes sit out, which waiting requests are hopeless. Keeps the deadlines of tokens
// and counts how they are met. Without targets it bounds nothing and looks at nothing.
//
// Thread safety: none.
// Invariant: a request becomes best effort at most once.
class SloPolicy {
 public:
  struct Options {
    std::int32_t num_bands = 1;   // of classes; the band behind them is that of best effort
    std::int32_t block_size = 0;  // prefills end at block boundaries
    std::int32_t max_batch_tokens = 0;
    std::optional<Micros> aging;  // best effort lasts as long at least
    double itl_credit = 0;        // targets between tokens that a stream saves by early ones, at most 1
  };

  // `targets` by class; those behind the last have none. `step_time` must outlive the policy.
  SloPolicy(const Options& options, std::vector<SloTarget> targets, const StepTimeModel& step_time);

  [[nodiscard]] bool is_active() const noexcept { return !classes_.empty(); }

  // A step, in this order, where `start` is when the device is expected to begin it.

  void begin_step(TimePoint start) noexcept;
  [[nodiscard]] TimePoint start() const noexcept { return start_; }
  // The time until which a waiting request is best effort from now on, because not even alone it would have
  // its first token in time; nothing: it may, or it has been best effort already. `num_cached` of its tokens
  // need not be computed.
  [[nodiscard]] std::optional<TimePoint> hopeless_until(const Request& request,
                                                        std::int32_t num_cached) const noexcept;
  // Decides how many prefill tokens the step may hold. `waiting` is the head of the queue, null where nothing
  // could be admitted. O(running).
  void grant(const RunningSet& running, const Request* waiting) noexcept;
  [[nodiscard]] std::int32_t prefill_tokens() const noexcept { return grant_.prefill_tokens; }
  [[nodiscard]] bool rests(const Request& decode) const noexcept {
    return grant_.resting_from && decode.band >= *grant_.resting_from;
  }
  // True iff a running request gets its next token in time from this step, and not from one that begins
  // `wait` later. O(running).
  [[nodiscard]] bool is_pressed(const RunningSet& running, Micros wait) const noexcept;
  // Decides anew after more was admitted, so that each of these still gets a token. O(prefills).
  void regrant(const RunningSet& running) noexcept;
  // True iff one more prompt may be started beside `work`.
  [[nodiscard]] bool has_room(const StepWork& work) const noexcept;
  // The tokens of a prompt that is at `context` which fit beside `work`, up to `most`; a block at least.
  [[nodiscard]] std::int32_t room_for(const StepWork& work, std::int32_t context,
                                      std::int32_t most) const noexcept;

  // Token `at` of a request is known, emitted at `emitted`.
  void note_token(Request& request, std::int32_t at, TimePoint emitted) noexcept;
  // A request got its last token.
  void note_end(const Request& request) noexcept;
  void note_rest() noexcept { ++counters_.rests; }
  void note_best_effort() noexcept { ++counters_.best_effort; }

  [[nodiscard]] const SloCounters& counters() const noexcept { return counters_; }

 private:
  struct Class {
    SloTarget target;
    Micros most_saved = 0;
    // The longest context with which a decode alone keeps the target: longer ones press nobody. Of this step.
    std::int32_t feasible_context = 0;
  };

  [[nodiscard]] const Class* class_of(const Request& request) const noexcept;
  [[nodiscard]] std::optional<TimePoint> first_due(const Request& request) const noexcept;
  [[nodiscard]] std::optional<TimePoint> next_due(const Request& request) const noexcept;
  [[nodiscard]] PrefillLoad load_of(const Request& prefill) const noexcept;
  void find_feasible_contexts() noexcept;

  // Immutable after construction.
  Options options_;
  const StepTimeModel& step_time_;

  std::vector<Class> classes_;
  SloBudget budget_;
  SloCounters counters_;

  // Of this step.
  TimePoint start_{};
  SloBudget::Grant grant_;
  std::vector<DecodeLoad> decodes_;    // by band
  std::vector<PrefillLoad> prefills_;  // in order of decision
};

}  // namespace airi
