#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime.h"
#include "sim/copies.h"
#include "sim/metrics.h"
#include "sim/router.h"
#include "sim/step_cost.h"
#include "sim/workload.h"

namespace airi {

// The arrays that a simulated runtime writes its steps into.
class StepArrays {
 public:
  StepArrays(const ModelConfig& model, bool has_tiers);
  StepArrays(const StepArrays&) = delete;
  StepArrays& operator=(const StepArrays&) = delete;
  StepArrays(StepArrays&&) = default;

  [[nodiscard]] StepBuffers buffers() noexcept;
  [[nodiscard]] StepWork work(const StepInfo& info) const noexcept;
  // The memory operations of the step.
  [[nodiscard]] std::span<const std::int64_t> ops_of(const StepInfo& info) const noexcept;

  std::vector<std::int64_t> request_ids;
  std::vector<std::uint8_t> row_flags;
  std::vector<std::int32_t> slots, query_start, seq_lens, draw_index, tokens, positions, deltas;
  std::vector<std::int64_t> ops;
};

// One runtime under virtual time: its steps take what the cost says and bring every row its token. Copies to
// and from tiers begin with the step that asks for them and run beside it; the runtime hears of them before
// the next step that is planned. A replica that runs no step and waits for a copy plans when it has ended.
//
// Thread safety: none.
// Invariant: steps are planned, run and committed in one order; a step is planned when the one before it is
// committed, or, with steps ahead, when that one starts.
class Replica {
 public:
  // `metrics` must outlive the replica. One that tells keeps its news until they are taken; its runtime keeps
  // KV events.
  Replica(std::int32_t number, const RuntimeConfig& config, const ModelConfig& model, const StepCost& cost,
          Metrics& metrics, bool tells);
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;

  void set_tenant(TenantId tenant, double weight) { runtime_.set_tenant(tenant, weight); }

  // Hands the request to the runtime at its arrival. REQUIRES: advance() was called with that moment.
  void submit(const TraceRequest& request, std::int32_t part_tokens);

  // Lets everything happen that happens before `until`: what arrives at that moment is seen by the step
  // planned then.
  void advance(TimePoint until) {
    while (advance_by_one(until)) {
    }
  }
  // The first of it. Returns whether there was anything.
  bool advance_by_one(TimePoint until);

  // The moment at which advance() would next do something, if it ever would.
  [[nodiscard]] std::optional<TimePoint> next_event() const;

  // Requests that were accepted and have not ended, as of the last advance().
  [[nodiscard]] std::int64_t load() const noexcept { return static_cast<std::int64_t>(live_.size()); }
  // The load just before `now`. Advances only where a request may have ended by then: a replica that runs
  // many steps at a stretch keeps its memory in the processor's caches.
  [[nodiscard]] std::int64_t load_before(TimePoint now);
  // What has happened since the last call. REQUIRES: it tells.
  void take_news(ReplicaNews& out);
  [[nodiscard]] std::int64_t num_accepted() const noexcept { return num_accepted_; }
  [[nodiscard]] ModelStats stats() const { return runtime_.stats().front(); }
  [[nodiscard]] std::int64_t num_steps() const noexcept { return num_steps_; }
  [[nodiscard]] Micros busy_us() const noexcept { return busy_; }
  [[nodiscard]] std::int64_t peak_active_blocks() const noexcept { return peak_active_; }
  [[nodiscard]] double active_block_us() const noexcept { return active_block_us_; }
  [[nodiscard]] TimePoint now() const noexcept { return now_; }
  void check_invariants() const { runtime_.check_invariants(); }

 private:
  // A step that was planned and not committed. What its arrays say stays valid until its commit.
  struct Planned {
    StepInfo info;
    TimePoint start{};
    TimePoint end{};
    std::vector<LiveRequest*> rows;  // nothing for a row that brings no token
  };

  void tell(const RequestNews& news) {
    if (tells_) news_.push_back(news);
  }
  void refuse(const TraceRequest& request, Refusal why);
  bool plan();
  void report_copies();
  void begin_copies(std::span<const std::int64_t> ops, TimePoint start);
  [[nodiscard]] Micros duration(const StepInfo& info) const;
  [[nodiscard]] std::optional<TimePoint> next_copy() const;
  void commit();
  void record(const Planned& step);
  void find_rows(Planned& step);
  void end_requests();
  [[nodiscard]] TimePoint earliest_end() const;

  // Immutable after construction.
  std::int32_t number_;
  std::size_t depth_;  // planned steps at most
  StepCost cost_;
  Micros shortest_step_;
  Micros load_timeout_;
  bool tells_;

  Metrics& metrics_;
  std::vector<StepArrays> arrays_;
  Runtime runtime_;
  Copies copies_;
  std::deque<TimePoint> timeouts_;  // when the runtime may stop waiting for copies
  TimePoint now_{0};
  bool may_plan_ = false;  // something has happened since the runtime had nothing to plan
  std::deque<Planned> planned_;
  std::vector<Planned> spare_;
  std::unordered_map<RequestId, LiveRequest> live_;
  std::vector<LiveRequest*> in_slot_;
  TimePoint none_ends_before_{0};

  std::vector<RequestNews> news_;
  std::uint64_t kv_cursor_ = 0;

  std::int64_t num_accepted_ = 0;
  std::int64_t num_steps_ = 0;
  Micros busy_ = 0;
  std::int64_t peak_active_ = 0;
  double active_block_us_ = 0;

  // Scratch of one commit.
  std::vector<std::int32_t> sampled_;
  std::vector<std::int32_t> counts_;
  std::vector<std::uint8_t> status_;
};

}  // namespace airi
