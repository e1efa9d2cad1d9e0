#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sched/block_tables.h"
#include "sched/planner.h"
#include "sched/preemption.h"
#include "sched/step_writer.h"
#include "sched/waiting_queue.h"

namespace airi {

// What service costs in the tenant ledger.
struct ServiceWeights {
  std::int32_t prompt = 1;  // per prompt token computed
  std::int32_t decode = 2;  // per sampled token
  std::int32_t hit = 0;     // per prompt token hit
};

struct SchedulerOptions {
  std::int32_t max_num_seqs = 0;
  std::int32_t max_batch_tokens = 0;
  std::int32_t max_prefill_chunk = 0;               // of one request per step
  std::int64_t bypass_tokens = 0;                   // service that may pass a head that does not fit
  std::optional<std::int64_t> fairness_gap_tokens;  // lead of a tenant that a head may preempt
  std::int32_t num_bands = 1;
  ServiceWeights service;
};

struct ModelStats {
  std::int64_t waiting = 0, running = 0;
  std::int64_t capacity = 0, free_blocks = 0, cached_blocks = 0, active_blocks = 0;
  std::int64_t query_tokens = 0, hit_tokens = 0;  // of first dispatches
  std::int64_t preemptions = 0, evictions = 0;
};

// Who runs on one model, and with how many tokens in its next step: continuous batching with
// chunked prefill where decodes never stall. Knows neither the clock nor the other models; owns
// no request.
//
// Thread safety: none.
// Invariant: a request is in exactly one of queue, prefills, decodes; running requests have
// distinct slots; a running request that is not planned is out of blocks or out of budget.
class ModelScheduler {
 public:
  struct Finished {
    Request* request = nullptr;
    FinishReason reason{};
  };

  ModelScheduler(const SchedulerOptions& options, BlockTables tables, AgingRule aging,
                 const TenantWeights& weights);
  ModelScheduler(const ModelScheduler&) = delete;
  ModelScheduler& operator=(const ModelScheduler&) = delete;

  void accept(Request* request) { queue_.push(request, request->arrival); }

  // Takes a request out wherever it stands. REQUIRES: it is in no uncommitted step.
  void drop(Request* request);

  // Plans one step into `out`. The order of decisions is in csrc/README.md.
  void plan(TimePoint now, StepWriter& out);

  // Applies what a planned step brought: `tokens` is ragged by `counts`. Appends what finished;
  // such requests belong to nobody afterwards. REQUIRES: counts and status are valid per row.
  void commit(std::span<const PlannedRow> rows, std::span<const std::int32_t> tokens,
              std::span<const std::int32_t> counts, std::span<const std::uint8_t> status,
              std::vector<Finished>& finished);

  [[nodiscard]] bool has_work() const noexcept {
    return !queue_.empty() || !decodes_.empty() || !prefills_.empty();
  }
  [[nodiscard]] std::size_t num_waiting() const noexcept { return queue_.size(); }
  [[nodiscard]] WaitingQueue& queue() noexcept { return queue_; }
  [[nodiscard]] const WaitingQueue& queue() const noexcept { return queue_; }
  [[nodiscard]] const BlockTables& tables() const noexcept { return tables_; }
  [[nodiscard]] ModelStats stats() const;
  void check_invariants() const;

 private:
  enum class Admission : std::uint8_t { kAdmitted, kNoBlocks, kNoRoomInStep };

  // What a step has left for a request that is admitted to it.
  struct Room {
    std::int64_t tokens = 0;
    std::int32_t reserved_deltas = 0;  // what others may still need
  };

  // plan(), in this order.
  void make_room_for_decodes(TimePoint now, StepWriter& out);
  void admit_first(TimePoint now, StepWriter& out);
  void plan_prefills(std::int32_t& budget, StepWriter& out);
  void admit_waiting(std::int32_t& budget, TimePoint now, StepWriter& out);

  [[nodiscard]] Admission try_admit(Request* request, const Room& room, TimePoint now, StepWriter& out);
  void dispatch(Request* request, const PrefixMatch& match, const AdmissionControl::Demand& demand,
                TimePoint now, StepWriter& out);
  bool admit_past(Request* head, const Room& room, TimePoint now, StepWriter& out);
  void plan_chunk(Request* request, std::int32_t chunk, std::int32_t& budget, StepWriter& out);

  [[nodiscard]] VictimKey victim_key(const Request* request) const;
  template <class Eligible>
  [[nodiscard]] Request* choose_victim(Eligible eligible) const;
  [[nodiscard]] bool makes_way(const Request* running, const Request* head) const;
  [[nodiscard]] bool can_make_way_for(Request* head);
  [[nodiscard]] bool is_overserved(const Request* running, const Request* head) const;
  [[nodiscard]] bool is_barred(const Request* head) const;
  template <class Eligible>
  [[nodiscard]] Admission preempt_for(Request* head, Eligible eligible, TimePoint now, StepWriter& out);
  void preempt(Request* request, TimePoint now);

  void commit_token(Request* request, std::int32_t token, std::vector<Finished>& finished);
  void finish(Request* request, FinishReason reason, std::vector<Finished>& finished);
  void stop_running(Request* request);
  void sweep_running();
  [[nodiscard]] bool is_ahead_of_running(const Request* head) const;
  [[nodiscard]] std::int64_t prompt_charge(const Request* request, std::int32_t hits) const noexcept;
  [[nodiscard]] std::ptrdiff_t num_prefills_ahead(const Request* request) const;
  [[nodiscard]] Room room_before_split(const Request* head) const;

  // Immutable after construction.
  SchedulerOptions options_;
  ChunkRule chunks_;

  BlockTables tables_;
  WaitingQueue queue_;
  std::vector<Request*> decodes_;   // in order of admission
  std::vector<Request*> prefills_;  // by band, then in order of admission
  std::vector<SlotId> free_slots_;  // last in, first out
  std::vector<std::int32_t> running_in_band_;
  std::int32_t band_limit_ = 0;       // this step admits from bands below it only
  std::vector<TenantId> overserved_;  // nor from these tenants, whom it preempted for others
  std::vector<TenantId> served_;      // nor preempts these for the gap: it admitted them first
  Request* newest_ = nullptr;         // what dispatch() was last called for
  bool needs_sweep_ = false;          // decodes_ or prefills_ hold requests that left them
  ModelStats counters_;

  // Scratch of one step; keeps its capacity.
  std::vector<PrefillDemand> demands_;
  std::vector<std::int32_t> shares_;
  std::vector<Request*> leaving_;
};

}  // namespace airi
