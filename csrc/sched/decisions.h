#pragma once

#include <cstdint>

#include "base/broadcast_ring.h"
#include "base/ids.h"
#include "base/time.h"
#include "sched/request.h"

namespace airi {

// What was decided about a request, and why. Numbers never change and are never used anew: logs and readers
// of other versions keep them. `a` and `b` are the columns of DecisionRecord.
enum class Decision : std::uint8_t {
  kNone = 0,  // never recorded

  kSubmitted = 1,  // it entered the queue. a: prompt tokens, b: most tokens it may generate

  // It waits; recorded when the reason is not the one recorded last.
  kQueuedTurn = 10,    // others stand before it in the queue. a: id of their first, b: how many wait
  kQueuedSlots = 11,   // every slot is taken. a: how many run
  kQueuedBlocks = 12,  // blocks do not suffice. a: blocks it needs, b: blocks it could have
  kQueuedBudget = 13,  // the step has no room left for it. a: most tokens in a step
  kQueuedBarred = 14,  // the step took others off the device and admits nothing in their place. a: its band
  kQueuedPrefix = 15,  // a running request computes its prefix. a: id of that, b: most steps it is held for
  kQueuedQuota =
      16,  // other tenants' quotas protect what it needs. a: blocks it needs, b: blocks it could have
  kQueuedBestEffort =
      17,  // its first token cannot be in time any more: it lets others pass. a: for how many us

  kAdmitted = 20,  // it runs from this step on. a: tokens hit, b: blocks promised to it in all
  kChunked = 21,   // the step computes part of its prompt. a: tokens, b: tokens left for later steps

  // It was taken off the device and waits again. a: id of the request in whose favour, b: tokens computed.
  kPreemptedMemory = 30,  // a running request needed a block
  kPreemptedUrgent = 31,  // a request of a more urgent class needed its place
  kPreemptedGap = 32,     // its tenant was served too much more than that of the other
  // Not for a request of its own model: a is -1.
  kPreemptedSlab = 33,   // another model has a claim to the memory
  kPreemptedSleep = 34,  // its model was told to sleep

  // It ended. a: tokens generated, b: prompt tokens that its first admission hit.
  kFinishedStop = 40,
  kFinishedLength = 41,
  kFinishedCancelled = 42,
  kFinishedDeadline = 43,
  kFinishedFailed = 44,
  kFinishedNan = 45,
  kFinishedNeverFits = 46,  // quotas, or models, that came since keep for others what it needs

  // It never entered the queue.
  kRefusedQueueFull = 60,    // a: how many may wait
  kRefusedTooLong = 61,      // a: tokens it needs at least, b: most tokens of a request
  kRefusedNeverFits = 62,    // a: blocks it needs at least, b: blocks there are
  kRefusedDuplicateId = 63,  // a live request has its id
  kRefusedModelGone = 64,    // its model is being removed, or has been
};

struct DecisionRecord {
  RequestId request{};
  TenantId tenant{};
  TimePoint at{};  // of the step that decided
  ModelId model{};
  std::int32_t decision = 0;
  std::int64_t a = 0;
  std::int64_t b = 0;
};

using DecisionRing = BroadcastRing<DecisionRecord>;

// Writes what a scheduler decides to a ring that any thread may read. Of a ring of 0 records nothing is
// left but a branch.
//
// Thread safety: writing belongs to the owner thread; ring() may be read from any.
class DecisionLog {
 public:
  explicit DecisionLog(std::int64_t capacity) : ring_(capacity) {}

  [[nodiscard]] bool enabled() const noexcept { return ring_.enabled(); }
  [[nodiscard]] const DecisionRing& ring() const noexcept { return ring_; }

  // The time of the records to come.
  void set_time(TimePoint now) noexcept { now_ = now; }

  void write(const Request& request, Decision decision, std::int64_t a = 0, std::int64_t b = 0) noexcept {
    if (!enabled()) return;
    ring_.push({.request = request.id,
                .tenant = request.tenant,
                .at = now_,
                .model = request.model,
                .decision = static_cast<std::int32_t>(decision),
                .a = a,
                .b = b});
  }

  // As write(), for a reason to wait, unless it is the one that was written last.
  void write_queued(Request& request, Decision why, std::int64_t a = 0, std::int64_t b = 0) noexcept {
    if (!enabled() || request.queued_for == raw(why)) return;
    request.queued_for = raw(why);
    write(request, why, a, b);
  }

  // A request that no scheduler has seen.
  void write_refused(DecisionRecord record) noexcept {
    record.at = now_;
    ring_.push(record);
  }

 private:
  DecisionRing ring_;
  TimePoint now_{};
};

[[nodiscard]] constexpr Decision decision_of(FinishReason reason) noexcept {
  return static_cast<Decision>(raw(Decision::kFinishedStop) + raw(reason));
}
static_assert(decision_of(FinishReason::kStop) == Decision::kFinishedStop &&
              decision_of(FinishReason::kNeverFits) == Decision::kFinishedNeverFits);

}  // namespace airi
