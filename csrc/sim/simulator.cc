#include "sim/simulator.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/check.h"
#include "sim/add_members.h"
#include "sim/turns.h"

namespace airi {
namespace {

constexpr std::int32_t kMaxReplicas = 4096;
constexpr std::int32_t kMaxPart = 1 << 20;
constexpr std::int32_t kMaxThreads = 256;

// KV events that a replica keeps for the router: it asks at every arrival, and takes a snapshot where it
// missed some.
constexpr std::int64_t kLeastKvEvents = 1 << 14;

void require(bool holds, const char* name, const std::string& value, const char* accepted) {
  if (holds) return;
  throw InvalidArgument(std::string(name) + " must be " + accepted + ", got " + value);
}

void check(const StepTimePiece& piece) {
  for (const double weight : {piece.step, piece.token, piece.seq, piece.context, piece.pair}) {
    require(std::isfinite(weight) && weight >= 0, "step_time", std::to_string(weight),
            "finite and at least 0");
  }
}

void check(const SimulatorConfig& config) {
  require(config.replicas >= 1 && config.replicas <= kMaxReplicas, "replicas",
          std::to_string(config.replicas), "between 1 and 4096");
  require(config.part_tokens >= 1 && config.part_tokens <= kMaxPart, "part_tokens",
          std::to_string(config.part_tokens), "between 1 and 2^20");
  require(config.threads >= 1 && config.threads <= kMaxThreads, "threads", std::to_string(config.threads),
          "between 1 and 256");
  require(config.load_guard >= 1 && config.load_guard <= 1e9, "load_guard", std::to_string(config.load_guard),
          "between 1 and 1e9");
  if (config.concurrency) {
    require(*config.concurrency >= 1, "concurrency", std::to_string(*config.concurrency), "at least 1");
  }
  for (const StepTimePiece& piece : config.cost.pieces) check(piece);
}

void add(TierStats& total, const TierStats& stats) {
  using T = TierStats;
  add_members(total, stats, &T::host_blocks, &T::disk_blocks, &T::stores, &T::loads, &T::spills, &T::fetches,
              &T::failures, &T::dropped_stores);
}

// KV that a replica may hold, in tokens.
std::int64_t kv_tokens(const SimulatorConfig& config, std::int64_t device_blocks) {
  const TierConfig& tiers = config.runtime.tiers;
  const std::int64_t tier_blocks = (tiers.host_bytes + tiers.disk_bytes) / config.model.bytes_per_block;
  return (device_blocks + tier_blocks) * config.model.block_size;
}

void check(const RequestColumns& c) {
  const std::size_t rows = c.arrival_us.size();
  for (const std::size_t size : {c.tenant.size(), c.band.size(), c.input_tokens.size(),
                                 c.output_tokens.size(), c.part_start.size() - 1}) {
    require(size == rows, "columns", std::to_string(size), "of one length");
  }
  require(c.part_start.front() == 0 && std::ranges::is_sorted(c.part_start) &&
              c.part_start.back() == static_cast<std::int64_t>(c.parts.size()),
          "part_start", std::to_string(c.part_start.back()), "offsets into parts, from 0 to its end");
  require(std::ranges::all_of(c.parts, [](std::int64_t id) { return id >= 0; }), "parts", "a negative id",
          "at least 0");
}

}  // namespace

Simulator::Simulator(const SimulatorConfig& config)
    : config_(config), router_hears_(hears_replicas(config.router)) {
  check(config);
  RuntimeConfig& runtime = config_.runtime;
  if (router_hears_) runtime.kv_event_records = std::max(runtime.kv_event_records, kLeastKvEvents);
  const auto replicas = static_cast<std::size_t>(config.replicas);
  load_.resize(replicas);
  sent_.resize(replicas);
  const std::size_t workers = std::min(static_cast<std::size_t>(config.threads), replicas);
  for (std::size_t i = 0; i < workers; ++i) {
    Worker& worker = *workers_.emplace_back(
        std::make_unique<Worker>(config, replicas * i / workers, replicas * (i + 1) / workers));
    for (std::size_t j = worker.begin; j < worker.end; ++j) {
      replicas_.push_back(std::make_unique<Replica>(static_cast<std::int32_t>(j), runtime, config.model,
                                                    config.cost, worker.metrics, router_hears_));
    }
  }
  const std::int64_t capacity = replicas_.front()->stats().capacity;
  router_ = make_router(config.router, {.replicas = replicas_.size(),
                                        .part_tokens = config.part_tokens,
                                        .kv_tokens = kv_tokens(config, capacity),
                                        .load_guard = config.load_guard,
                                        .model = config.model,
                                        .hash_key = config.runtime.hash_key,
                                        .step_time = config.cost.pieces});
}

void Simulator::set_tenant(TenantId tenant, double weight) {
  for (const auto& replica : replicas_) replica->set_tenant(tenant, weight);
}

void Simulator::feed(const RequestColumns& c) {
  if (c.part_start.empty()) throw InvalidArgument("part_start must not be empty");
  check(c);
  arriving_.clear();
  for (std::size_t i = 0; i < c.arrival_us.size(); ++i) {
    const TimePoint arrival{c.arrival_us[i]};
    const TimePoint least = config_.concurrency ? TimePoint{0}
                            : arriving_.empty() ? now_
                                                : arriving_.back().arrival;
    require(arrival >= least && arrival <= TimePoint{kMaxMicros}, "arrival_us",
            std::to_string(c.arrival_us[i]), "in order, in [0, 2^53]");
    const auto begin = static_cast<std::size_t>(c.part_start[i]);
    const auto end = static_cast<std::size_t>(c.part_start[i + 1]);
    arriving_.push_back({.id = RequestId{next_id_++},
                         .tenant = TenantId{c.tenant[i]},
                         .band = c.band[i],
                         .arrival = arrival,
                         .input_tokens = c.input_tokens[i],
                         .output_tokens = c.output_tokens[i],
                         .parts = c.parts.subspan(begin, end - begin)});
  }
  if (config_.concurrency) {
    for (const TraceRequest& request : arriving_) arrive(request);
    for_each_replica([&](std::size_t i) { replicas_[i]->advance(now_); });
  } else if (router_->looks_at_load()) {
    arrive_in_turns(arriving_);
  } else {
    arrive_apart(arriving_);
  }
}

void Simulator::arrive(TraceRequest request) {
  now_ = std::max(now_, request.arrival);
  make_room();
  request.arrival = now_;
  for (std::size_t i = 0; i < replicas_.size(); ++i) {
    if (router_hears_) replicas_[i]->advance(now_);
    load_[i] = replicas_[i]->load_before(now_);
  }
  if (router_hears_) tell_router();
  Replica& chosen = *replicas_[router_->pick(request, load_)];
  chosen.advance(now_);
  chosen.submit(request, config_.part_tokens);
}

void Simulator::tell_router() {
  for (std::size_t i = 0; i < replicas_.size(); ++i) {
    replicas_[i]->take_news(news_);
    router_->hear(i, news_);
  }
}

void Simulator::deliver(const Sent& sent) {
  replicas_[sent.replica]->advance(sent.request.arrival);
  replicas_[sent.replica]->submit(sent.request, config_.part_tokens);
}

// A turn per arrival. Nothing reaches a replica between two arrivals but what was sent to it at the first of
// them, so all may run until the second.
void Simulator::arrive_in_turns(std::span<const TraceRequest> requests) {
  bool is_last = false;
  const auto share = [&](std::size_t i) {
    Worker& worker = *workers_[i];
    if (on_its_way_ && on_its_way_->replica >= worker.begin && on_its_way_->replica < worker.end) {
      deliver(*on_its_way_);
    }
    if (!is_last) return look_at_load(worker);
    for (std::size_t j = worker.begin; j < worker.end; ++j) replicas_[j]->advance(now_);
  };
  on_its_way_.reset();
  Turns turns(workers_.size(), share, [&](std::size_t i) { return work_ahead(*workers_[i]); });
  for (const TraceRequest& request : requests) {
    now_ = request.arrival;
    turns.take();
    if (router_hears_) tell_router();
    on_its_way_ = {.replica = router_->pick(request, load_), .request = request};
  }
  is_last = true;
  turns.take();
}

void Simulator::look_at_load(Worker& worker) {
  for (std::size_t i = worker.begin; i < worker.end; ++i) {
    if (router_hears_) replicas_[i]->advance(now_);
    load_[i] = replicas_[i]->load_before(now_);
  }
  worker.until = now_;
  worker.behind = worker.end - worker.begin;
}

// One replica until it is there, then the next: one that runs many steps at a stretch keeps its memory in the
// processor's caches.
bool Simulator::work_ahead(Worker& worker) {
  for (; worker.behind > 0; --worker.behind) {
    if (replicas_[worker.at]->advance_by_one(worker.until)) return true;
    if (++worker.at == worker.end) worker.at = worker.begin;
  }
  return false;
}

// Each replica gets all its requests without a look at the others.
void Simulator::arrive_apart(std::span<const TraceRequest> requests) {
  if (requests.empty()) return;
  for (auto& places : sent_) places.clear();
  for (std::size_t i = 0; i < requests.size(); ++i) sent_[router_->pick(requests[i], load_)].push_back(i);
  now_ = requests.back().arrival;
  for_each_replica([&](std::size_t replica) {
    for (const std::size_t i : sent_[replica]) {
      replicas_[replica]->advance(requests[i].arrival);
      replicas_[replica]->submit(requests[i], config_.part_tokens);
    }
    replicas_[replica]->advance(now_);
  });
}

template <class Run>
void Simulator::for_each_replica(Run run) {
  const auto share = [&](std::size_t i) {
    for (std::size_t j = workers_[i]->begin; j < workers_[i]->end; ++j) run(j);
  };
  Turns(workers_.size(), share, [](std::size_t) { return false; }).take();
}

void Simulator::advance_all(TimePoint until) {
  for (const auto& replica : replicas_) replica->advance(until);
}

// Where the system is full, lets time pass until a request ends.
void Simulator::make_room() {
  if (!config_.concurrency) return;
  advance_all(now_);
  const auto in_system = [&] {
    std::int64_t sum = 0;
    for (const auto& replica : replicas_) sum += replica->load();
    return sum;
  };
  while (in_system() >= *config_.concurrency) {
    if (!advance_to_next_event()) break;
  }
}

bool Simulator::advance_to_next_event() {
  std::optional<TimePoint> next;
  for (const auto& replica : replicas_) {
    const auto event = replica->next_event();
    if (event && (!next || *event < *next)) next = event;
  }
  if (!next) return false;
  now_ = std::max(now_, *next);
  advance_all(*next + 1);
  return true;
}

bool Simulator::drain(Micros span) {
  require(span >= 1 && span <= kMaxMicros, "span_us", std::to_string(span), "between 1 and 2^53");
  now_ = now_ + span;
  for_each_replica([&](std::size_t i) { replicas_[i]->advance(now_); });
  return std::ranges::any_of(replicas_,
                             [](const auto& replica) { return replica->next_event().has_value(); });
}

std::unique_ptr<Metrics> Simulator::metrics() {
  auto total = std::make_unique<Metrics>(config_.targets, false);
  for (const auto& worker : workers_) {
    worker->metrics.flush();
    total->merge(worker->metrics);
  }
  return total;
}

std::vector<RequestRow> Simulator::take_rows() {
  std::vector<RequestRow> rows;
  for (const auto& worker : workers_) {
    const std::vector<RequestRow> taken = worker->metrics.take_rows();
    rows.insert(rows.end(), taken.begin(), taken.end());
  }
  std::ranges::sort(rows, {}, [](const RequestRow& r) { return std::pair(r.end_us, r.request_id); });
  return rows;
}

FleetStats Simulator::stats() const {
  FleetStats total;
  double active_us = 0;
  for (const auto& replica : replicas_) {
    const ModelStats stats = replica->stats();
    total.accepted.push_back(replica->num_accepted());
    total.steps += replica->num_steps();
    total.preemptions += stats.preemptions;
    total.evictions += stats.evictions;
    total.query_tokens += stats.query_tokens;
    total.hit_tokens += stats.hit_tokens;
    total.loaded_tokens += stats.loaded_tokens;
    total.swaps += stats.swaps;
    add(total.tiers, stats.tiers);
    total.waiting += stats.waiting;
    total.running += stats.running;
    total.capacity += stats.capacity;
    const double peak = static_cast<double>(replica->peak_active_blocks());
    total.peak_kv = std::max(total.peak_kv, peak / static_cast<double>(stats.capacity));
    active_us += replica->active_block_us();
    total.busy += static_cast<double>(replica->busy_us());
    total.end_us = std::max(total.end_us, static_cast<Micros>(replica->now()));
  }
  const auto time = static_cast<double>(std::max<Micros>(total.end_us, 1));
  total.mean_kv = active_us / (time * static_cast<double>(total.capacity));
  total.busy /= time * static_cast<double>(replicas_.size());
  return total;
}

void Simulator::check_invariants() const {
  for (const auto& replica : replicas_) replica->check_invariants();
}

}  // namespace airi
