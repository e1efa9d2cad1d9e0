#include "sim/simulator.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"

namespace airi {
namespace {

constexpr std::int32_t kMaxReplicas = 4096;
constexpr std::int32_t kMaxPart = 1 << 20;

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
  require(config.load_guard >= 1 && config.load_guard <= 1e9, "load_guard", std::to_string(config.load_guard),
          "between 1 and 1e9");
  if (config.concurrency) {
    require(*config.concurrency >= 1, "concurrency", std::to_string(*config.concurrency), "at least 1");
  }
  for (const StepTimePiece& piece : config.cost.pieces) check(piece);
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
    : config_(config),
      metrics_(config.targets, config.keeps_rows),
      load_(static_cast<std::size_t>(std::max(config.replicas, 0))),
      accepted_(load_.size()) {
  check(config);
  for (std::int32_t i = 0; i < config.replicas; ++i) {
    replicas_.push_back(std::make_unique<Replica>(i, config.runtime, config.model, config.cost, metrics_));
  }
  const std::int64_t capacity = replicas_.front()->stats().capacity;
  router_ = make_router(config.router, {.replicas = replicas_.size(),
                                        .part_tokens = config.part_tokens,
                                        .kv_tokens = capacity * config.model.block_size,
                                        .load_guard = config.load_guard});
}

void Simulator::set_tenant(TenantId tenant, double weight) {
  for (const auto& replica : replicas_) replica->set_tenant(tenant, weight);
}

void Simulator::feed(const RequestColumns& c) {
  if (c.part_start.empty()) throw InvalidArgument("part_start must not be empty");
  check(c);
  for (std::size_t i = 0; i < c.arrival_us.size(); ++i) {
    const TimePoint arrival{c.arrival_us[i]};
    require(arrival >= TimePoint{0} && arrival <= TimePoint{kMaxMicros}, "arrival_us",
            std::to_string(c.arrival_us[i]), "in [0, 2^53]");
    const auto begin = static_cast<std::size_t>(c.part_start[i]);
    const auto end = static_cast<std::size_t>(c.part_start[i + 1]);
    arrive({.id = RequestId{next_id_++},
            .tenant = TenantId{c.tenant[i]},
            .band = c.band[i],
            .arrival = arrival,
            .input_tokens = c.input_tokens[i],
            .output_tokens = c.output_tokens[i],
            .parts = c.parts.subspan(begin, end - begin)});
  }
}

void Simulator::arrive(TraceRequest request) {
  if (!config_.concurrency) {
    require(request.arrival >= now_, "arrival_us", std::to_string(static_cast<std::int64_t>(request.arrival)),
            "in order");
  }
  now_ = std::max(now_, request.arrival);
  advance_all(now_);
  make_room();
  request.arrival = now_;
  for (std::size_t i = 0; i < replicas_.size(); ++i) load_[i] = replicas_[i]->load();
  const std::size_t chosen = router_->pick(request, load_);
  replicas_[chosen]->submit(request, config_.part_tokens);
  accepted_[chosen] += replicas_[chosen]->load() - load_[chosen];
}

void Simulator::advance_all(TimePoint until) {
  for (const auto& replica : replicas_) replica->advance(until);
}

// Where the system is full, lets time pass until a request ends.
void Simulator::make_room() {
  if (!config_.concurrency) return;
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
  advance_all(now_);
  return std::ranges::any_of(replicas_,
                             [](const auto& replica) { return replica->next_event().has_value(); });
}

FleetStats Simulator::stats() const {
  FleetStats total;
  total.accepted = accepted_;
  double active_us = 0;
  for (const auto& replica : replicas_) {
    const ModelStats stats = replica->stats();
    total.steps += replica->num_steps();
    total.preemptions += stats.preemptions;
    total.evictions += stats.evictions;
    total.query_tokens += stats.query_tokens;
    total.hit_tokens += stats.hit_tokens;
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
