#include "runtime.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/check.h"

namespace airi {
namespace {

std::vector<double> device_weights(const std::vector<ModelConfig>& models) {
  std::vector<double> weights;
  weights.reserve(models.size());
  for (const ModelConfig& model : models) weights.push_back(model.device_weight);
  return weights;
}

Transfers::Rates start_rates(const TierConfig& tiers) {
  const double host = tiers.host_bytes_per_us;
  const double disk = tiers.disk_bytes_per_us;
  return {0, host, host, disk, disk};
}

}  // namespace

Runtime::Runtime(const RuntimeConfig& config, const std::vector<ModelConfig>& models,
                 const std::vector<StepBuffers>& buffers)
    : config_(config),
      inbox_(config.max_queued),
      kv_events_(config.kv_event_records),
      log_(config.decision_records),
      arena_(config.arena_bytes, config.slab_bytes),
      exchange_(arena_, config.slab_hysteresis_us),
      transfers_(start_rates(config.tiers)),
      host_space_(config.tiers.host_bytes / kGranuleBytes),
      disk_space_(config.tiers.disk_bytes / kGranuleBytes),
      arbiter_({.quantum = config.quantum_us,
                .min_residency = config.min_residency_us,
                .max_borrow = config.max_borrow_us},
               device_weights(models)) {
  check_config(config);
  for (const ModelConfig& model : models) {
    check_config(model);
    check_targets(model, config);
  }
  if (models.empty()) throw InvalidArgument("models must hold at least 1, got 0");
  in_flight_.reserve(static_cast<std::size_t>(config.steps_ahead) + 1);
  for (const StepBuffers& set : buffers) check_buffers(set, models);
  replace_buffers(buffers);
  const std::vector<SlabLimits> limits = slab_limits(models, arena_.num_slabs());
  std::int32_t home = 0;  // weights lie at the start of the arena
  for (std::size_t i = 0; i < models.size(); ++i) arena_.add_model(limits[i], models[i].weight_slabs);
  std::vector<std::optional<SlabId>> homes(models.size());
  for (std::size_t i = 0; i < models.size(); ++i) {
    if (models[i].weight_slabs > 0) homes[i] = SlabId{home};
    const SlabOwner owner{ModelId{static_cast<std::int32_t>(i)}, SlabUse::kWeights};
    for (std::int32_t n = models[i].weight_slabs; n > 0; --n) arena_.give(SlabId{home++}, owner, now_);
  }
  for (std::size_t i = 0; i < models.size(); ++i) {
    const ModelId id{static_cast<std::int32_t>(i)};
    host(id, models[i]);
    models_.back().weights_at = homes[i];
    publish_limits(id);
  }
  attach_tiers();
}

void Runtime::expire(TimePoint now) {
  while (!deadlines_.empty() && deadlines_.top()->deadline <= now) {
    drop(deadlines_.top(), FinishReason::kDeadline);
  }
}

void Runtime::drop(Request* request, FinishReason reason) {
  models_[index(request->model)].scheduler->drop(request);
  end(request, reason);
}

void Runtime::end(Request* request, FinishReason reason) {
  events_.push_back({.request_id = request->id,
                     .reason = reason,
                     .model = request->model,
                     .num_prompt_tokens = request->prompt_length,
                     .num_cached_tokens = request->num_cached.value_or(0),
                     .num_generated_tokens = request->generated()});
  log_.write(*request, decision_of(reason), request->generated(), request->num_cached.value_or(0));
  if (request->deadline) deadlines_.remove(request);
  ended_.push_back(request->id);
  requests_.erase(request->id);
}

void Runtime::settle() {
  std::int64_t waiting = 0;
  for (const Hosted& model : models_) waiting += model.scheduler ? model.scheduler->num_waiting() : 0;
  inbox_.settle(waiting, ended_);
  ended_.clear();
}

std::optional<StepInfo> Runtime::step(TimePoint now) {
  if (in_flight_.size() > static_cast<std::size_t>(config_.steps_ahead)) {
    throw InvalidArgument("step " + std::to_string(raw(in_flight_.front().info.step_id)) +
                          " must be committed before the next one");
  }
  check_moment("now_us", now);
  now_ = std::max(now_, now);
  log_.set_time(now_);
  ops_.begin_step(writers_[static_cast<std::size_t>(next_step_) % writers_.size()].max_ops());
  read_inbox();
  expire(now_);
  go_on_with_changes();
  for (std::size_t i = 0; i < models_.size(); ++i) {
    if (models_[i].scheduler) models_[i].scheduler->advance_loads(now_);
    arbiter_.set_backlogged(ModelId{static_cast<std::int32_t>(i)}, may_plan(models_[i]));
  }
  if (config_.max_borrow_us > 0) find_pressed();
  std::optional<StepInfo> planned;
  for (auto model = arbiter_.next(); model; model = arbiter_.next()) {
    planned = plan(*model);
    if (planned) break;
    if (waits(*model)) {
      arbiter_.set_backlogged(*model, false);  // for others to give it slabs, or a tier its blocks
    } else {
      arbiter_.pass(*model);  // for what its step in flight brings
    }
  }
  settle();
  return planned;
}

// A model is pressed where it must not wait for the next step of any other.
void Runtime::find_pressed() {
  for (std::size_t i = 0; i < models_.size(); ++i) {
    Micros wait = 0;
    for (std::size_t other = 0; other < models_.size(); ++other) {
      if (other != i && may_plan(models_[other])) wait = std::max(wait, models_[other].last_step);
    }
    const bool pressed =
        wait > 0 && may_plan(models_[i]) && models_[i].scheduler->is_pressed(expected_start(), wait);
    arbiter_.set_pressed(ModelId{static_cast<std::int32_t>(i)}, pressed);
  }
}

// When the device will be done with what it has been given, if steps take what they are expected to.
TimePoint Runtime::expected_start() const {
  TimePoint free = device_free_;
  for (const InFlight& step : in_flight_) {
    const auto micros = static_cast<Micros>(std::min(step.expected_us, static_cast<double>(kMaxMicros)));
    free = std::min(std::max(free, step.planned_at) + micros, TimePoint{kMaxMicros});
  }
  return std::max(free, now_);
}

std::optional<StepInfo> Runtime::plan(ModelId model) {
  const auto buffer = static_cast<std::size_t>(next_step_) % writers_.size();
  StepWriter& writer = writers_[buffer];
  writer.clear();
  Hosted& hosted = models_[index(model)];
  hosted.scheduler->plan(now_, expected_start(), writer);
  const auto is_empty = [&] { return writer.num_rows() == 0 && writer.num_deltas() == 0; };
  // A request that took itself off for a block that is kept for its own tenant bars itself from the step:
  // with nothing else in it, it comes back in the next one, which is this.
  if (is_empty() && in_flight_.empty() && !waits(model)) {
    hosted.scheduler->plan(now_, expected_start(), writer);
  }
  // Without rows a step is worth while for what is waited for, or where no slab could be zeroed any more;
  // what is stored or spilled comes along.
  const bool has_ops = !ops_.step().empty() && (waits_for_tiers(model) || ops_.room() <= 0);
  if (is_empty() && !has_ops) {
    AIRI_CHECK(!in_flight_.empty() || waits(model))
        << "model " << raw(model) << " has work and plans nothing";
    return std::nullopt;
  }
  writer.set_ops(ops_.step());
  const StepInfo info{.step_id = StepId{next_step_++},
                      .model = model,
                      .buffer = static_cast<std::int32_t>(buffer),
                      .num_rows = writer.num_rows(),
                      .num_tokens = writer.num_tokens(),
                      .num_deltas = writer.num_deltas(),
                      .num_samples = writer.num_samples(),
                      .num_decodes = writer.num_decodes(),
                      .num_prefill_tokens = writer.num_tokens() - writer.num_decodes(),
                      .num_ops = static_cast<std::int32_t>(ops_.step().size())};
  const double expected = writer.num_rows() > 0 ? hosted.step_time.estimate(writer.work()) : 0;
  in_flight_.push_back({info, now_, expected});
  ops_.end_step();
  return info;
}

StepInfo Runtime::checked_step(StepId step_id, std::span<const std::int32_t> tokens,
                               std::span<const std::int32_t> counts,
                               std::span<const std::uint8_t> status) const {
  if (in_flight_.empty() || in_flight_.front().info.step_id != step_id) {
    throw InvalidArgument("step_id must be that of the oldest uncommitted step, got " +
                          std::to_string(raw(step_id)));
  }
  const auto rows = writers_[static_cast<std::size_t>(in_flight_.front().info.buffer)].rows();
  if (counts.size() != rows.size() || status.size() != rows.size()) {
    throw InvalidArgument("counts and status must have " + std::to_string(rows.size()) + " rows, got " +
                          std::to_string(counts.size()) + " and " + std::to_string(status.size()));
  }
  std::size_t total = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int32_t most = rows[i].samples ? 1 : 0;
    const std::int32_t least = status[i] == raw(RowStatus::kOk) ? most : 0;
    if (status[i] > raw(RowStatus::kFailed) || counts[i] < least || counts[i] > most) {
      throw InvalidArgument("row " + std::to_string(i) + " must bring " + std::to_string(most) +
                            " tokens, got " + std::to_string(counts[i]) + " with status " +
                            std::to_string(status[i]));
    }
    total += static_cast<std::size_t>(counts[i]);
  }
  if (tokens.size() != total) {
    throw InvalidArgument("tokens must hold sum(counts) = " + std::to_string(total) + ", got " +
                          std::to_string(tokens.size()));
  }
  if (std::ranges::any_of(tokens, [](std::int32_t t) { return t < 0; })) {
    throw InvalidArgument("tokens must not be negative");
  }
  return in_flight_.front().info;
}

void Runtime::commit(StepId step_id, std::span<const std::int32_t> tokens,
                     std::span<const std::int32_t> counts, std::span<const std::uint8_t> status,
                     Micros device_time) {
  const StepInfo step = checked_step(step_id, tokens, counts, status);
  if (device_time < 0 || device_time > kMaxMicros) {
    throw InvalidArgument("device_us must lie in [0, 2^53], got " + std::to_string(device_time));
  }
  device_free_ = std::max(device_free_, in_flight_.front().planned_at) + device_time;
  device_free_ = std::min(device_free_, TimePoint{kMaxMicros});
  in_flight_.erase(in_flight_.begin());
  const StepWriter& writer = writers_[static_cast<std::size_t>(step.buffer)];
  const StepTiming timing{.work = writer.work(), .device_time = device_time, .emitted = device_free_};
  finished_.clear();
  models_[index(step.model)].scheduler->commit(writer.rows(), tokens, counts, status, timing, finished_);
  models_[index(step.model)].last_step = device_time;
  // On a clock too coarse for a step the device would else never change hands.
  arbiter_.charge(step.model, std::max<Micros>(device_time, 1));
  for (const auto& [request, reason] : finished_) end(request, reason);
  go_on_with_changes();
  settle();
}

std::vector<FinishedEvent> Runtime::drain_events() { return std::exchange(events_, {}); }

std::vector<ModelStats> Runtime::stats() const {
  std::vector<ModelStats> stats;
  stats.reserve(models_.size());
  for (const Hosted& model : models_) {
    stats.push_back(model.scheduler ? model.scheduler->stats() : ModelStats{});
  }
  return stats;
}

StepTimeModel& Runtime::step_time(ModelId model) { return hosted(model).step_time; }

std::optional<std::int64_t> Runtime::tenant_counter(ModelId model, std::int32_t band, TenantId tenant) const {
  if (index(model) >= models_.size() || band < 0 || band >= config_.num_bands) return std::nullopt;
  if (!models_[index(model)].scheduler) return std::nullopt;
  const TenantLedger& ledger = models_[index(model)].scheduler->queue().ledger(band);
  const auto known = ledger.find(tenant);
  if (!known) return std::nullopt;
  return ledger.counter(*known);
}

KvSnapshot Runtime::kv_snapshot(ModelId model) const {
  if (index(model) >= models_.size()) {
    throw InvalidArgument("model must be a model of this runtime, got " + std::to_string(raw(model)));
  }
  const auto& scheduler = models_[index(model)].scheduler;
  if (!scheduler) return {.cursor = kv_events_.next(), .stored = {}};
  return {.cursor = kv_events_.next(), .stored = scheduler->tables().pool().stored_hashes()};
}

void Runtime::check_invariants() const {
  arena_.check_invariants();
  exchange_.check_invariants();
  deadlines_.check_invariants();
  std::int64_t standing = 0;
  for (const Hosted& model : models_) {
    if (!model.scheduler) continue;
    model.scheduler->check_invariants();
    const ModelStats stats = model.scheduler->stats();
    standing += stats.waiting + stats.running;
  }
  AIRI_CHECK(standing == static_cast<std::int64_t>(requests_.size()))
      << "schedulers hold " << standing << " requests of " << requests_.size();
}

}  // namespace airi
