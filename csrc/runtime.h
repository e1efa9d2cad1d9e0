#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/indexed_heap.h"
#include "base/mutex.h"
#include "base/time.h"
#include "fair/model_arbiter.h"
#include "fair/tenant_weights.h"
#include "kv/kv_events.h"
#include "kv/memory_op.h"
#include "kv/slab_arena.h"
#include "kv/slab_exchange.h"
#include "kv/slab_source.h"
#include "kv/tier_space.h"
#include "model_lifecycle.h"
#include "runtime_config.h"
#include "sched/decisions.h"
#include "sched/inbox.h"
#include "sched/model_scheduler.h"
#include "sched/step_writer.h"

namespace airi {

enum class Admit : std::uint8_t {
  kAccepted,
  kQueueFull,    // max_queued requests wait already
  kTooLong,      // the prompt, or prompt and max_new_tokens, exceed max_model_len
  kNeverFits,    // prompt and max_new_tokens need more blocks than the model has
  kDuplicateId,  // a live request has this id
  kModelGone,    // the model is being removed, or has been
};

// What step() planned. Arrays of buffer set `buffer` hold it until commit.
struct StepInfo {
  StepId step_id{};
  ModelId model{};
  std::int32_t buffer = 0;
  std::int32_t num_rows = 0;
  std::int32_t num_tokens = 0;
  std::int32_t num_deltas = 0;
  std::int32_t num_samples = 0;         // rows that need a token
  std::int32_t num_decodes = 0;         // rows that stand first and bring one token each
  std::int32_t num_prefill_tokens = 0;  // of the other rows
  std::int32_t num_ops = 0;             // memory operations to execute before the batch
};

// A request ended.
struct FinishedEvent {
  RequestId request_id{};
  FinishReason reason{};
  ModelId model{};
  std::int32_t num_prompt_tokens = 0;
  std::int32_t num_cached_tokens = 0;
  std::int32_t num_generated_tokens = 0;
};

// The scheduling core of one device: several models over one arena. Decides whose step is next and
// what is in it. A pure function of its inputs: never reads a clock, draws a number or does I/O.
//
// Thread safety: submit, cancel, set_tenant, set_kv_quota, capacity, complete_transfers, has_work, and
// reading of decisions() and kv_events() from any thread; everything else from one owner thread.
// Steps run on the device in the order planned, and are committed in it. What a step is planned to overwrite
// may therefore still be in use by the one before.
//
// Invariant: each live request stands in the inbox or in exactly one model's scheduler; at most
// 1 + steps_ahead steps are uncommitted; a request that has ended gets no token.
class Runtime {
 public:
  // Throws InvalidArgument naming the first setting that cannot work, with its value.
  Runtime(const RuntimeConfig& config, const std::vector<ModelConfig>& models,
          const std::vector<StepBuffers>& buffers);
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Queues a request. Throws InvalidArgument for values that no limit explains: an unknown model,
  // an empty prompt, a negative token, an arrival farther than kMaxMicros from the epoch.
  [[nodiscard]] Admit submit(RequestSpec spec);

  // Ends a request at the next step(). False where no live request has this id.
  bool cancel(RequestId id);

  // Sets the tenant's weight from the next step() on.
  void set_tenant(TenantId tenant, double weight);

  // Keeps, from the next step() on, `blocks` of a model's KV memory for a tenant: blocks that its requests
  // took, in use or CACHED, are lost to others only beyond that. 0: none, and what it has is nobody's. What
  // was taken before a quota does not count. Requests that cannot fit beside the quotas of others are
  // refused, or ended. Throws InvalidArgument for an unknown model, a negative number, or more than 64
  // tenants of a model.
  void set_kv_quota(TenantId tenant, ModelId model, std::int32_t blocks);

  // Blocks that requests of a model can count on: all it has or, where slabs move, its guarantee. Throws
  // InvalidArgument for an unknown model.
  [[nodiscard]] std::int32_t capacity(ModelId model) const;

  // Plans the next step, or nothing where no model has work or all of it waits for a step in flight or for a
  // transfer. A step may bring memory operations and deltas without a row. `now` should not go back; where it
  // does, the latest time seen counts. Throws InvalidArgument while more than steps_ahead steps are
  // uncommitted.
  [[nodiscard]] std::optional<StepInfo> step(TimePoint now);

  // Applies what the oldest uncommitted step brought. `tokens` is ragged by `counts`: one for a row that
  // samples, none for another, either for a row whose status is not kOk; what it brings to requests that have
  // ended since is ignored. Throws InvalidArgument, and changes nothing, where an argument does not match it.
  void commit(StepId step_id, std::span<const std::int32_t> tokens, std::span<const std::int32_t> counts,
              std::span<const std::uint8_t> status, Micros device_time);

  // Models at run time; only the owner thread. Ids count up and are not given again. Any number of steps may
  // be uncommitted: a request that is taken off the device still gets the tokens that they sample for it, one
  // that ends gets none.
  //
  // Starts a model; from then on others may submit to it. Where it has weights in slabs, requests of others
  // may be taken off to make place, and its state tells when to move them in. Others can count on less from
  // then on: requests that do not fit that are ended. Throws InvalidArgument, and changes nothing, where
  // limits or buffers do not allow it.
  ModelId add_model(const ModelConfig& model);
  // Takes no more requests of the model; those it has end first or, unless `drains`, are cancelled. Of one
  // that is asleep they are always cancelled: to drain it, wake it first. It is gone when its state is
  // kRemoved.
  void remove_model(ModelId model, bool drains);
  // Takes the model's requests off the device; they wait until it is awake again. When its state is
  // kMovingOut, copy its weights, and confirm: then its slabs are lent. Also of one that is kMovingIn.
  void sleep(ModelId model);
  // Takes its weights' slabs back from whoever has them. When its state is kMovingIn, copy its weights, and
  // confirm: then its requests run.
  void wake(ModelId model);
  void confirm_moved(ModelId model);
  [[nodiscard]] ModelState state(ModelId model) const;
  // The first of the adjacent slabs that hold, or held, the model's weights; nothing where it has none.
  [[nodiscard]] std::optional<SlabId> weights_at(ModelId model) const;
  // Sets to write steps into from the next one on. Throws InvalidArgument where a step is uncommitted, or the
  // next one has more memory operations already than they hold.
  void replace_buffers(const std::vector<StepBuffers>& buffers);
  // Tells how memory operations ended, in any order, any time after their step was handed out: those that are
  // named by an id, each once. What has failed is computed. Any thread may call it.
  void complete_transfers(std::span<const Inbox::TransferReport> reports) { inbox_.report(reports); }

  // What ended since the last call, oldest first.
  [[nodiscard]] std::vector<FinishedEvent> drain_events();

  // True while any accepted request has not ended.
  [[nodiscard]] bool has_work() const { return inbox_.has_live(); }
  [[nodiscard]] std::vector<ModelStats> stats() const;

  // How long steps of a model take, as learnt from commits. To be changed, by observing steps that were run
  // elsewhere or by importing what was learnt before, only between steps. Throws InvalidArgument for an
  // unknown model.
  [[nodiscard]] StepTimeModel& step_time(ModelId model);

  // What the tenant has been served in a band of a model, per weight: 2^20 units are one unit of
  // service at weight 1. Nothing where the ledger has no state of it.
  [[nodiscard]] std::optional<std::int64_t> tenant_counter(ModelId model, std::int32_t band,
                                                           TenantId tenant) const;

  // What was decided about requests, and which blocks came and went: for readers on any thread.
  [[nodiscard]] const DecisionRing& decisions() const noexcept { return log_.ring(); }
  [[nodiscard]] const KvEventRing& kv_events() const noexcept { return kv_events_; }

  // All hashes of a model that the device holds, and the event to go on from.
  [[nodiscard]] KvSnapshot kv_snapshot(ModelId model) const;

  // Throws InvariantError naming the first broken invariant. O(everything).
  void check_invariants() const;

 private:
  struct DeadlinePlace {
    HeapPlace& operator()(Request* r) const noexcept { return r->deadline_place; }
  };
  struct ByDeadline {
    bool operator()(const Request* a, const Request* b) const noexcept {
      return a->deadline != b->deadline ? a->deadline < b->deadline : a->id < b->id;
    }
  };

  // An uncommitted step.
  struct InFlight {
    StepInfo info;
    TimePoint planned_at{};
    double expected_us = 0;  // on the device
  };
  struct ModelLimits {
    std::int32_t max_model_len = 0;
    std::int32_t capacity = 0;  // blocks that a request can count on
    bool caches_prefixes = false;
    bool is_gone = false;
    std::shared_ptr<const HashChain> chain;
  };
  // A model's parts of the tiers.
  struct TierRanges {
    TierRange host;
    TierRange disk;
  };
  // What requests of a model can count on, going by the mail that was read.
  struct Room {
    std::int32_t capacity = 0;                          // blocks, as in ModelLimits
    std::int64_t kept = 0;                              // of them, by all quotas
    std::unordered_map<TenantId, std::int32_t> quotas;  // blocks
    bool has_shrunk = false;                            // for some tenant, since requests were looked at
  };
  // What the runtime keeps of a model beside its scheduler.
  struct Hosted {
    ModelConfig config;
    std::shared_ptr<const HashChain> chain;
    StepTimeModel step_time;
    TierRanges tier_ranges;
    Room room;
    std::unique_ptr<TierCache> tiers;           // or null; outlives the scheduler, until no transfer is left
    std::unique_ptr<ModelScheduler> scheduler;  // null once removed
    std::unique_ptr<SlabSource> source;         // null: its slabs are fixed
    ModelState state = ModelState::kAwake;
    bool drains = false;          // while it is being removed: its requests may end
    std::int64_t quiet_from = 0;  // when no step before this one is on the device, its change goes on
    bool is_home = true;          // while it wakes: its weights' slabs are its own
    std::optional<SlabId> weights_at;
    Micros last_step = 0;  // on the device
  };

  [[nodiscard]] static std::unique_ptr<Request> make_request(RequestSpec&& spec, const ModelLimits& limits);
  [[nodiscard]] std::shared_ptr<const ModelLimits> limits_of(ModelId model) const;
  void host(ModelId id, const ModelConfig& model);
  [[nodiscard]] std::vector<SlabId> take_fixed_slabs(ModelId model);
  [[nodiscard]] std::optional<SlabId> find_home(std::int32_t count) const;
  [[nodiscard]] bool occupy_home(ModelId model);
  void leave_home(ModelId model);
  [[nodiscard]] std::int32_t capacity_of(ModelId model) const;
  void publish_limits(ModelId model);
  [[nodiscard]] Hosted& hosted(ModelId model);
  void go_on_with_changes();
  void release_everything(ModelId model);
  void tell_that_all_is_gone(ModelId model);
  [[nodiscard]] static bool may_plan(const Hosted& hosted);
  // True iff what the model has to do may wait for others' slabs, or for a tier.
  [[nodiscard]] bool waits(ModelId model) const noexcept {
    return exchange_.waits(model) || waits_for_tiers(model);
  }
  // A load may also wait for what is stored or spilled to leave it a slot of the host.
  [[nodiscard]] bool waits_for_tiers(ModelId model) const noexcept {
    return transfers_.is_waited_for() ||
           (transfers_.num_pending() > 0 && models_[index(model)].scheduler->is_loading());
  }
  void read_inbox();
  void take_quotas();
  [[nodiscard]] bool never_fits(const Request& request) const;
  void end_what_never_fits();
  void expire(TimePoint now);
  void drop(Request* request, FinishReason reason);
  void end(Request* request, FinishReason reason);
  void settle();
  void attach_tiers();
  void attach_tiers_late(ModelId model);
  void attach_tiers(ModelId model, const TierRanges& ranges);
  [[nodiscard]] std::int64_t tier_weight(ModelId model) const;
  void check_tier_buffers(const std::vector<StepBuffers>& buffers) const;
  void give_back(const TierRanges& ranges);
  void release_quiet_tiers(ModelId model);
  void take_back_ops(SlabId slab);
  void end_transfer(TransferId id, TransferEnd end, Micros micros);
  void end_transfers();
  [[nodiscard]] std::optional<StepInfo> plan(ModelId model);
  [[nodiscard]] TimePoint expected_start() const;
  void find_pressed();
  [[nodiscard]] StepInfo checked_step(StepId step_id, std::span<const std::int32_t> tokens,
                                      std::span<const std::int32_t> counts,
                                      std::span<const std::uint8_t> status) const;

  // Immutable after construction.
  RuntimeConfig config_;

  Inbox inbox_;
  mutable Mutex limits_mu_;
  std::vector<std::shared_ptr<const ModelLimits>> limits_ AIRI_GUARDED_BY(limits_mu_);

  // Only the owner thread writes.
  KvEventRing kv_events_;
  DecisionLog log_;

  // Only the owner thread.
  SlabArena arena_;
  SlabExchange exchange_;
  MemoryOps ops_;
  Transfers transfers_;
  TierSpace host_space_;
  TierSpace disk_space_;
  TenantWeights weights_;
  ModelArbiter arbiter_;
  std::deque<Hosted> models_;
  std::vector<StepBuffers> buffers_;
  std::vector<StepWriter> writers_;
  std::unordered_map<RequestId, std::unique_ptr<Request>> requests_;
  IndexedHeap<Request*, ByDeadline, DeadlinePlace> deadlines_;
  std::vector<FinishedEvent> events_;
  std::vector<RequestId> ended_;  // since the last settle()
  std::vector<ModelScheduler::Finished> finished_;
  Inbox::Mail mail_;
  TimePoint now_{-kMaxMicros};
  std::int64_t next_step_ = 0;
  std::vector<InFlight> in_flight_;     // uncommitted, oldest first
  TimePoint device_free_{-kMaxMicros};  // when the device was done with the latest committed step
};

}  // namespace airi
