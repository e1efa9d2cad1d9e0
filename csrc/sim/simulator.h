#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime_config.h"
#include "sim/metrics.h"
#include "sim/replica.h"
#include "sim/router.h"
#include "sim/step_cost.h"

namespace airi {

struct SimulatorConfig {
  RuntimeConfig runtime;  // of every replica
  ModelConfig model;
  StepCost cost;
  std::int32_t replicas = 1;
  std::string router = "prefix";
  double load_guard = 1.5;                  // of the router
  std::int32_t part_tokens = 512;           // of a part of a prompt
  std::optional<std::int64_t> concurrency;  // requests in the system at most; later ones arrive when one ends
  SloTargets targets;
  bool keeps_rows = false;
  std::int32_t threads = 1;  // at most; figures do not depend on it
};

// Columns of requests in order of arrival. The parts of request i are parts[part_start[i], part_start[i +
// 1]).
struct RequestColumns {
  std::span<const std::int64_t> arrival_us;
  std::span<const std::int64_t> tenant;
  std::span<const std::int32_t> band;
  std::span<const std::int32_t> input_tokens;
  std::span<const std::int32_t> output_tokens;
  std::span<const std::int64_t> part_start;  // one more than requests
  std::span<const std::int64_t> parts;
};

// Totals over all replicas.
struct FleetStats {
  std::int64_t steps = 0, preemptions = 0, evictions = 0;
  std::int64_t query_tokens = 0, hit_tokens = 0, loaded_tokens = 0;  // loaded ones are hits, too
  std::int64_t swaps = 0;
  TierStats tiers;
  std::int64_t waiting = 0, running = 0;
  std::int64_t capacity = 0;           // blocks
  double peak_kv = 0;                  // share of its blocks that the fullest replica ever had in use
  double mean_kv = 0;                  // over time and replicas
  double busy = 0;                     // share of time that replicas spent in steps
  Micros end_us = 0;                   // when the last step ended
  std::vector<std::int64_t> accepted;  // by replica
};

// N replicas of the product's runtime under virtual time, a router before them. Requests are fed in columns;
// what is kept of them are figures. The same input gives the same figures. Each thread runs some of the
// replicas: through all that was fed where the router does not look at load, else from arrival to arrival.
// With a limit on concurrency replicas run in threads after the last arrival only.
//
// Thread safety: none.
class Simulator {
 public:
  // Throws InvalidArgument naming the first setting that cannot work, with its value.
  explicit Simulator(const SimulatorConfig& config);
  Simulator(const Simulator&) = delete;
  Simulator& operator=(const Simulator&) = delete;

  void set_tenant(TenantId tenant, double weight);

  // Lets these requests arrive. Throws InvalidArgument where columns differ in length, an arrival goes back
  // or a number is out of range.
  void feed(const RequestColumns& columns);

  // Runs what was fed for up to `span` more of virtual time. Returns whether anything is left.
  bool drain(Micros span);

  // What all replicas measured, together. Takes no rows.
  [[nodiscard]] std::unique_ptr<Metrics> metrics();
  // Requests that finished since the last call, by the time of their end and id.
  [[nodiscard]] std::vector<RequestRow> take_rows();
  [[nodiscard]] FleetStats stats() const;
  [[nodiscard]] Micros now_us() const noexcept { return static_cast<std::int64_t>(now_); }
  void check_invariants() const;

 private:
  // What one thread runs: replicas [begin, end), and what they measure.
  struct Worker {
    Worker(const SimulatorConfig& config, std::size_t first, std::size_t last)
        : metrics(config.targets, config.keeps_rows), begin(first), end(last), at(first) {}

    Metrics metrics;
    std::size_t begin, end;
    TimePoint until{};       // no request is going to arrive earlier
    std::size_t at;          // which one works ahead
    std::size_t behind = 0;  // replicas that may have something left to do before `until`
  };
  // A request on its way to the replica that was chosen for it.
  struct Sent {
    std::size_t replica;
    TraceRequest request;
  };

  void arrive(TraceRequest request);
  void arrive_in_turns(std::span<const TraceRequest> requests);
  void arrive_apart(std::span<const TraceRequest> requests);
  void tell_router();
  void deliver(const Sent& sent);
  // The worker's share of a turn: brings its replicas as far as it takes to know their load just before now.
  void look_at_load(Worker& worker);
  bool work_ahead(Worker& worker);
  // Calls run(replica) for each, those of one worker in one thread.
  template <class Run>
  void for_each_replica(Run run);
  void advance_all(TimePoint until);
  bool advance_to_next_event();
  void make_room();

  // Immutable after construction.
  SimulatorConfig config_;
  bool router_hears_;

  std::unique_ptr<Router> router_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::vector<std::int64_t> load_;
  std::vector<TraceRequest> arriving_;
  std::vector<std::vector<std::size_t>> sent_;  // by replica: places in arriving_
  std::optional<Sent> on_its_way_;
  ReplicaNews news_;  // scratch
  TimePoint now_{0};
  std::int64_t next_id_ = 0;
};

}  // namespace airi
