#pragma once

#include <cstdint>

#include "sched/block_tables.h"
#include "sched/decisions.h"
#include "sched/planner.h"
#include "sched/preemptor.h"
#include "sched/prefix_dedupe.h"
#include "sched/prefix_loader.h"
#include "sched/running_set.h"
#include "sched/slo_policy.h"
#include "sched/step_writer.h"
#include "sched/swapper.h"
#include "sched/waiting_queue.h"

namespace airi {

// What service costs in the tenant ledger.
struct ServiceWeights {
  std::int32_t prompt = 1;  // per prompt token computed
  std::int32_t decode = 2;  // per sampled token
  std::int32_t hit = 0;     // per prompt token hit
};

// Lets waiting requests of one model run, in order of decision, where slots, blocks and room in the step
// allow it. Splits no budget.
//
// Thread safety: none.
class Admitter {
 public:
  struct Options {
    std::int32_t max_batch_tokens = 0;
    std::int64_t bypass_tokens = 0;  // service that may pass a head that does not fit
    ServiceWeights service;
  };

  // What admitted requests hit, of first dispatches.
  struct Counters {
    std::int64_t query_tokens = 0;
    std::int64_t hit_tokens = 0;
    std::int64_t loaded_tokens = 0;  // of them, what a tier had
  };

  // The references must outlive the admitter.
  Admitter(const Options& options, const ChunkRule& chunks, BlockTables& tables, WaitingQueue& queue,
           RunningSet& running, Preemptor& preemptor, Swapper& swapper, PrefixLoader& loader,
           PrefixDedupe& dedupe, SloPolicy& slo, DecisionLog& log);

  // The request to admit next, or null where none waits. What stands before it and cannot have its first
  // token in time any more becomes best effort.
  [[nodiscard]] Request* next();

  // The head: the request to admit next, or null where none waits. Never changes what comes first.
  [[nodiscard]] Request* first_waiting();

  // Admits heads that are more urgent than something that runs, or far less served, while that leaves each a
  // token; at a slot or block limit others make way.
  void admit_first(TimePoint now, StepWriter& out);

  // Admits the next request that may have some of `budget`, or returns null. It must get a token of it,
  // unless it is loading.
  [[nodiscard]] Request* admit_next(std::int32_t budget, TimePoint now, StepWriter& out);

  // A waiting request ended.
  void forget(const Request* request) noexcept {
    if (held_back_ == request) held_back_ = nullptr;
  }

  // That many blocks of a request that was just dispatched for the first time did not come from the tiers: it
  // computes them, and is charged for it.
  void charge_missing(Request* request, std::int32_t blocks);

  [[nodiscard]] const Counters& counters() const noexcept { return counters_; }

 private:
  enum class Outcome : std::uint8_t {
    kAdmitted,
    kHeld,  // it has left the queue: another computes its prefix
    kNoBlocks,
    kNoRoomInStep
  };

  // What a step has left for a request that is admitted to it.
  struct Room {
    std::int64_t tokens = 0;
    std::int32_t reserved_deltas = 0;  // what others may still need
  };

  [[nodiscard]] bool may_enter(Request* head, std::int32_t budget) noexcept;
  [[nodiscard]] Outcome try_admit(Request* request, const Room& room, TimePoint now, StepWriter& out);
  [[nodiscard]] Outcome hold(const PrefixDedupe::Held& held);
  [[nodiscard]] bool has_blocks(const Request* request, const PrefixMatch& match,
                                const AdmissionControl::Demand& demand);
  void dispatch(Request* request, const PrefixMatch& match, std::span<const BlockPool::Known> loads,
                const AdmissionControl::Demand& demand, TimePoint now, StepWriter& out);
  [[nodiscard]] Request* admit_past(Request* head, const Room& room, TimePoint now, StepWriter& out);
  [[nodiscard]] Outcome make_way(Request* head, Outcome outcome, TimePoint now, StepWriter& out);
  [[nodiscard]] std::int64_t prompt_charge(const Request* request, std::int32_t hits) const noexcept;
  void hold_back(Request* head, Decision why, std::int64_t a, std::int64_t b = 0) noexcept;
  [[nodiscard]] Room room_before_split(const Request* head) const;

  // Immutable after construction.
  Options options_;
  ChunkRule chunks_;

  BlockTables& tables_;
  WaitingQueue& queue_;
  RunningSet& running_;
  Preemptor& preemptor_;
  Swapper& swapper_;
  PrefixLoader& loader_;
  PrefixDedupe& dedupe_;
  SloPolicy& slo_;
  DecisionLog& log_;
  PrefixMatch match_;             // scratch
  Request* held_back_ = nullptr;  // the head whose reason to wait was looked at last
  Counters counters_;
};

}  // namespace airi
