#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sched/block_tables.h"
#include "sched/decisions.h"
#include "sched/preemption.h"
#include "sched/running_set.h"
#include "sched/step_writer.h"
#include "sched/swapper.h"
#include "sched/waiting_queue.h"

namespace airi {

// Takes running requests of one model off the device, and remembers for the rest of the step who must not
// come back in it.
//
// A request of which tokens are still being computed is parked: its blocks and its slot are free at once,
// because steps run in the order planned, and it returns to the queue when the last of them has come.
//
// Thread safety: none.
// Invariant: a parked request holds no block and no slot, and still counts as its tenant's running work.
class Preemptor {
 public:
  // `fairness_gap_tokens` is the lead, per weight, from which on a tenant's requests are taken off for
  // another's; nothing: never. The references must outlive the preemptor.
  Preemptor(std::optional<std::int64_t> fairness_gap_tokens, std::int32_t num_bands, BlockTables& tables,
            WaitingQueue& queue, RunningSet& running, Swapper& swapper, DecisionLog& log);

  void begin_step();

  // True iff what this step has done forbids that `head` runs in it: whatever it preempted, or what stands
  // behind it, must not come back in it.
  [[nodiscard]] bool is_barred(const Request* head) const;
  // `head` was admitted by this step before its budget was split.
  void note_served(const Request* head) { served_.push_back(head->tenant); }

  // True iff some running request would have to make way for `head`: for its band, or its tenant's due.
  [[nodiscard]] bool is_ahead_of_running(const Request* head) const;
  // True iff `head` would be admitted if all requests that its band drives out went. O(their blocks).
  [[nodiscard]] bool can_make_way_for(Request* head);

  // Each takes off the worst of those that may go and returns it, or null where there is none.
  Request* preempt_for_memory(const Request* needy, TimePoint now);
  Request* preempt_overserved(const Request* head, TimePoint now);
  Request* preempt_less_urgent(const Request* head, TimePoint now);

  // Takes off every request that holds a block of the slab, then others until what is available without
  // the slab covers the promises; or every request. They come back whenever they can.
  void vacate(SlabId slab, TimePoint now);
  void preempt_all(TimePoint now);

  // Gives back all that a running request holds. It goes on in `phase`; the caller tells the queue.
  void stop(Request* request, Phase phase);

  // The tokens of a parked request have come: it goes back to the queue, or ends where `ended`.
  void unpark(Request* request, bool ended);
  [[nodiscard]] std::int64_t num_parked() const noexcept { return num_parked_; }
  [[nodiscard]] std::int64_t num_preemptions() const noexcept { return num_preemptions_; }

 private:
  [[nodiscard]] VictimKey victim_key(const Request* request) const;
  template <class Eligible>
  [[nodiscard]] Request* choose(Eligible eligible) const;
  [[nodiscard]] bool makes_way(const Request* running, const Request* head) const;
  [[nodiscard]] std::int64_t most_served(const Request* head) const;
  [[nodiscard]] bool is_overserved(const Request* running, std::int32_t band, std::int64_t most) const;
  void preempt(Request* request, const Request* beneficiary, Decision why, TimePoint now);

  // Immutable after construction.
  std::optional<std::int64_t> fairness_gap_tokens_;
  std::int32_t num_bands_;

  BlockTables& tables_;
  WaitingQueue& queue_;
  RunningSet& running_;
  Swapper& swapper_;
  DecisionLog& log_;
  std::int64_t num_parked_ = 0;
  std::int64_t num_preemptions_ = 0;

  // Of this step.
  std::int32_t band_limit_;           // only bands below it are admitted
  std::vector<TenantId> overserved_;  // nor these tenants, of whom it took requests off for others
  std::vector<TenantId> served_;      // whom it admitted first, and does not take off for the gap
  std::vector<Request*> leaving_;     // scratch
};

}  // namespace airi
