#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sched/admitter.h"
#include "sched/block_tables.h"
#include "sched/planner.h"
#include "sched/preemptor.h"
#include "sched/prefix_dedupe.h"
#include "sched/prefix_loader.h"
#include "sched/running_set.h"
#include "sched/slo_policy.h"
#include "sched/step_time.h"
#include "sched/step_writer.h"
#include "sched/swapper.h"
#include "sched/waiting_queue.h"

namespace airi {

struct SchedulerOptions {
  std::int32_t max_num_seqs = 0;
  std::int32_t max_batch_tokens = 0;
  std::int32_t max_prefill_chunk = 0;                   // of one request per step
  bool whole_prompts = false;                           // as in ModelConfig
  std::int64_t bypass_tokens = 0;                       // service that may pass a head that does not fit
  std::optional<std::int64_t> fairness_gap_tokens;      // lead of a tenant that a head may preempt
  std::optional<std::int64_t> locality_quantum_tokens;  // nothing: prefixes do not count
  std::int32_t dedupe_steps = 0;                        // for which a request waits for a prefix that runs
  std::int32_t num_bands = 1;
  ServiceWeights service;
  Micros load_timeout = 1'000'000;
  std::vector<SloTarget> targets;  // by class
  double itl_credit = 0;           // as in SloPolicy
};

// What a step that has run took.
struct StepTiming {
  StepWork work;
  Micros device_time = 0;
  TimePoint emitted{};  // when its tokens were there
};

struct ModelStats {
  std::int64_t waiting = 0, running = 0;
  std::int64_t capacity = 0, free_blocks = 0, cached_blocks = 0, active_blocks = 0;
  std::int64_t query_tokens = 0, hit_tokens = 0;  // of first dispatches
  std::int64_t loaded_tokens = 0;                 // hits that a tier had
  std::int64_t preemptions = 0, evictions = 0;
  std::int64_t swaps = 0;  // preemptions of which the host keeps the blocks
  TierStats tiers;
  std::int64_t dedupe_holds = 0;  // of requests for a prefix that another computed
  SloCounters slo;
};

// Who runs on one model, and with how many tokens in its next step: continuous batching with
// chunked prefill where decodes never stall. Knows neither the clock nor the other models; owns
// no request.
//
// A plan takes for granted that the steps before it run, in order: it counts what they compute as computed
// and continues from tokens that they have yet to sample.
//
// Thread safety: none.
// Invariant: a request is queued, running or parked; a running request that is not planned is out of
// blocks, out of budget or planned out.
class ModelScheduler final : public SlabHolder {
 public:
  struct Finished {
    Request* request = nullptr;
    FinishReason reason{};
  };

  // The references must outlive the scheduler.
  ModelScheduler(const SchedulerOptions& options, BlockTables tables, AgingRule aging,
                 const TenantWeights& weights, StepTimeModel& step_time, DecisionLog& log);
  ModelScheduler(const ModelScheduler&) = delete;
  ModelScheduler& operator=(const ModelScheduler&) = delete;
  ~ModelScheduler() override = default;

  // Blocks have copies in `tiers`, at most `num_copies` of them. REQUIRES: nothing was accepted yet.
  void attach(TierCache& tiers, std::int32_t num_copies) { tables_.attach(tiers, num_copies); }

  void accept(Request* request, TimePoint now);

  // Takes a request out wherever it stands; rows of it in flight mean nothing any more.
  void drop(Request* request);

  // A transfer of this model has ended.
  void complete(const Transfer& transfer, TransferEnd end) { loader_.complete(transfer, end); }
  // Lets go on what has been loaded, or has waited for it long enough. Call before plans, for every model.
  void advance_loads(TimePoint now);
  // True iff a request waits for its prefix to be loaded.
  [[nodiscard]] bool is_loading() const noexcept { return loader_.oldest() != nullptr; }

  // Plans one step into `out`. The order of decisions is in csrc/README.md. No row at all where everything
  // waits for what a step in flight brings. `start` is when the device is expected to begin the step.
  void plan(TimePoint now, TimePoint start, StepWriter& out);

  // True iff a running request gets its next token in time from a step that begins at `start`, and not from
  // one that begins `wait` later.
  [[nodiscard]] bool is_pressed(TimePoint start, Micros wait) {
    slo_.begin_step(start);
    return slo_.is_active() && slo_.is_pressed(running_, wait);
  }

  // Applies what the oldest planned step brought: `tokens` is ragged by `counts`. Appends what finished;
  // such requests belong to nobody afterwards. REQUIRES: counts and status are valid per row.
  void commit(std::span<const PlannedRow> rows, std::span<const std::int32_t> tokens,
              std::span<const std::int32_t> counts, std::span<const std::uint8_t> status,
              const StepTiming& timing, std::vector<Finished>& finished);

  // Takes every request off the device; all wait. Plans none until the next plan().
  void preempt_all(TimePoint now);
  void stop_all_loading(TimePoint now);
  // Where to ask for more blocks before one is refused or preempted for.
  void set_source(SlabSource* source) noexcept { tables_.set_source(source); }

  // SlabHolder.
  [[nodiscard]] BlockPool& slab_pool() noexcept override { return tables_.pool(); }
  [[nodiscard]] std::int32_t num_promised() const noexcept override { return tables_.num_spoken_for(); }
  [[nodiscard]] std::int64_t num_wanted() const noexcept override;
  [[nodiscard]] bool is_running() const noexcept override { return !running_.empty(); }
  void vacate(SlabId slab, TimePoint now) override;

  [[nodiscard]] bool has_work() const noexcept {
    return !queue_.empty() || !running_.empty() || preemptor_.num_parked() > 0 || dedupe_.num_held() > 0;
  }
  [[nodiscard]] std::int64_t num_waiting() const noexcept {
    return static_cast<std::int64_t>(queue_.size() + dedupe_.num_held()) + preemptor_.num_parked();
  }
  [[nodiscard]] WaitingQueue& queue() noexcept { return queue_; }
  [[nodiscard]] const WaitingQueue& queue() const noexcept { return queue_; }
  [[nodiscard]] const BlockTables& tables() const noexcept { return tables_; }
  [[nodiscard]] ModelStats stats() const;
  // Wants the tenant to keep `blocks` of this model's cache, whatever others need.
  void set_quota(TenantId tenant, std::int32_t blocks) { tables_.set_quota(tenant, blocks); }
  void check_invariants() const;

 private:
  // plan(), in this order, with Admitter::admit_first between the first two.
  void make_room_for_decodes(TimePoint now, StepWriter& out);
  void plan_decodes(StepWriter& out);
  void plan_prefills(std::int32_t& budget, StepWriter& out);
  void admit_waiting(std::int32_t& budget, TimePoint now, StepWriter& out);
  void count_on(std::span<PlannedRow> rows);
  [[nodiscard]] const Request* admissible();

  void publish(Request* request, std::int32_t computed);
  void stop_loading(Request* request, TimePoint now);
  void plan_chunk(Request* request, std::int32_t chunk, std::int32_t& budget, StepWriter& out);
  void commit_token(Request* request, std::int32_t at, std::int32_t token, TimePoint emitted,
                    std::vector<Finished>& finished);
  void finish(Request* request, FinishReason reason, std::vector<Finished>& finished);

  // Immutable after construction.
  SchedulerOptions options_;
  ChunkRule chunks_;

  BlockTables tables_;
  WaitingQueue queue_;
  RunningSet running_;
  StepTimeModel& step_time_;  // every decision that weighs time looks at this one
  Swapper swapper_;
  Preemptor preemptor_;
  PrefixLoader loader_;
  SloPolicy slo_;
  PrefixDedupe dedupe_;
  Admitter admitter_;
  DecisionLog& log_;
  std::vector<PrefillDemand> demands_;  // scratch
  std::vector<std::int32_t> shares_;    // scratch
};

}  // namespace airi
