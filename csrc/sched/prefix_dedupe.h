#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sched/planner.h"
#include "sched/request.h"
#include "sched/running_set.h"
#include "sched/step_time.h"
#include "sched/step_writer.h"
#include "sched/waiting_queue.h"

namespace airi {

// Holds back waiting requests whose next block a running request is about to compute, so that a prefix which
// several bring at once is computed once. Never blocks what stands behind them: a held request is out of the
// queue.
//
// It is held for `max_steps` steps at most in all, and only while by the estimates of steps it would not have
// what it shares sooner if it computed that itself. It goes back to the queue in the very step in which its
// producer has published the blocks, got no tokens in the step before, or does not run any more.
//
// No more are held than could run at once: the cost of a step must not depend on how many wait.
//
// Thread safety: none.
// Invariant: a held request holds no block and no slot, is in no queue and in no other step's rows.
class PrefixDedupe {
 public:
  // Why a request had better wait.
  struct Held {
    Request* request = nullptr;
    const Request* producer = nullptr;
    std::uint64_t serial = 0;   // of the producer: its memory may be another's by now
    std::int32_t matched = 0;   // blocks, when it was held
    std::int32_t target = 0;    // blocks that it shares with the producer
    std::int32_t room = 0;      // tokens that the step had for it when it was held
    std::int32_t computed = 0;  // tokens of the producer, before the latest step
  };

  // With max_steps 0 it holds nothing. The references must outlive this.
  PrefixDedupe(std::int32_t max_steps, const ChunkRule& chunks, const StepTimeModel& step_time,
               const RunningSet& running, WaitingQueue& queue);

  // A step is about to be planned: lets go of those that nothing holds any more. O(held).
  void begin_step();
  // Requests may have been preempted: lets go of those whose producer is among them. O(held).
  void release_orphans(TimePoint now);
  // What the planned step computes.
  void end_step(const StepWork& work) { latest_ = work; }

  // Whether a waiting request that matches `num_matched` blocks should be held: if what is planned of the
  // step so far and the running requests make that pay. The step has room for `room` tokens of it, at
  // least 1. O(prefills).
  [[nodiscard]] std::optional<Held> worth_holding(Request* request, std::int32_t num_matched,
                                                  std::int64_t room, const StepWriter& planned) const;
  [[nodiscard]] bool is_full() const noexcept { return held_.size() >= running_.num_slots(); }
  // Takes the request out of the queue. REQUIRES: !is_full().
  void hold(const Held& held);

  // A held request ends. O(held).
  void remove(const Request* request);

  [[nodiscard]] std::int32_t max_steps() const noexcept { return max_steps_; }
  [[nodiscard]] std::size_t num_held() const noexcept { return held_.size(); }
  // How often a request was held.
  [[nodiscard]] std::int64_t num_holds() const noexcept { return num_holds_; }

  // Throws InvariantError naming the first broken invariant. O(held).
  void check_invariants() const;

 private:
  // What a producer has yet to compute, and the pace at which it does.
  struct Outlook {
    std::int32_t shared = 0;   // tokens that the held request would have to compute itself
    std::int32_t context = 0;  // before them
    std::int32_t room = 0;     // of them that one step would take, at least 1
    std::int32_t missing = 0;  // tokens that no planned step computes
    std::int32_t chunk = 0;    // of the producer in a step
  };

  [[nodiscard]] bool runs(const Held& held) const;
  [[nodiscard]] bool still_holds(const Held& held) const;
  [[nodiscard]] bool pays(const Outlook& outlook, const StepWork& step) const;
  [[nodiscard]] const Request* producer_of(const Request& request, std::int32_t block) const;
  template <class Condition>
  bool keep_where(Condition condition);

  // Immutable after construction.
  std::int32_t max_steps_;
  ChunkRule chunks_;
  const StepTimeModel& step_time_;
  const RunningSet& running_;

  WaitingQueue& queue_;
  std::vector<Held> held_;
  StepWork latest_;
  std::int64_t num_holds_ = 0;
};

}  // namespace airi
