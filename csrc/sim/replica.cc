#include "sim/replica.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace airi {
namespace {

// Beyond the least that the core works with: newcomers that share a prefix bring a table each.
constexpr std::int64_t kMoreDeltas = 1 << 14;

// Looking at more requests than these for the first to end takes longer than it saves.
constexpr std::size_t kMostLooked = 1024;

// What a step takes that only begins copies.
constexpr Micros kBareStep = 1;

std::vector<StepArrays> make_arrays(const RuntimeConfig& config, const ModelConfig& model) {
  const std::size_t sets = std::max<std::size_t>(static_cast<std::size_t>(config.steps_ahead) + 1, 2);
  std::vector<StepArrays> arrays;
  for (std::size_t i = 0; i < sets; ++i) arrays.emplace_back(model, config.tiers.host_bytes > 0);
  return arrays;
}

std::vector<StepBuffers> buffers_of(std::vector<StepArrays>& arrays) {
  std::vector<StepBuffers> buffers;
  for (StepArrays& set : arrays) buffers.push_back(set.buffers());
  return buffers;
}

Refusal refusal_of(Admit admit) {
  switch (admit) {
    case Admit::kQueueFull:
      return Refusal::kQueueFull;
    case Admit::kTooLong:
      return Refusal::kTooLong;
    default:
      AIRI_CHECK(admit == Admit::kNeverFits) << "an id of the trace is used twice";
      return Refusal::kNeverFits;
  }
}

}  // namespace

StepArrays::StepArrays(const ModelConfig& model, bool has_tiers) {
  const auto rows = static_cast<std::size_t>(model.max_num_seqs);
  const auto most = static_cast<std::size_t>(std::max(model.max_batch_tokens, model.max_num_seqs));
  request_ids.resize(rows);
  row_flags.resize(rows);
  for (auto* v : {&slots, &seq_lens, &draw_index}) v->resize(rows);
  query_start.resize(rows + 1);
  for (auto* v : {&tokens, &positions}) v->resize(most);
  const std::int64_t tables =
      std::int64_t{model.max_num_seqs} * ceil_div(model.max_model_len, model.block_size);
  deltas.resize(static_cast<std::size_t>(3 * (model.max_deltas() + std::min(tables, kMoreDeltas))));
  if (has_tiers) ops.resize(Copies::kMaxOps * StepWriter::kOpColumns);
}

StepBuffers StepArrays::buffers() noexcept {
  return {.request_ids = request_ids,
          .slots = slots,
          .query_start = query_start,
          .seq_lens = seq_lens,
          .row_flags = row_flags,
          .draw_index = draw_index,
          .tokens = tokens,
          .positions = positions,
          .deltas = deltas,
          .ops = ops};
}

StepWork StepArrays::work(const StepInfo& info) const noexcept {
  StepWork work{.tokens = info.num_tokens, .seqs = info.num_rows, .decode_context = 0, .prefill_pairs = 0};
  const auto decodes = static_cast<std::size_t>(info.num_decodes);
  for (std::size_t row = 0; row < decodes; ++row) work.decode_context += seq_lens[row];
  for (std::size_t row = decodes; row < static_cast<std::size_t>(info.num_rows); ++row) {
    const double count = query_start[row + 1] - query_start[row];
    work.prefill_pairs += count * (static_cast<double>(seq_lens[row]) - count / 2);
  }
  return work;
}

std::span<const std::int64_t> StepArrays::ops_of(const StepInfo& info) const noexcept {
  return std::span(ops).first(static_cast<std::size_t>(info.num_ops) * StepWriter::kOpColumns);
}

Replica::Replica(std::int32_t number, const RuntimeConfig& config, const ModelConfig& model,
                 const StepCost& cost, Metrics& metrics, bool tells)
    : number_(number),
      depth_(static_cast<std::size_t>(config.steps_ahead) + 1),
      cost_(cost),
      shortest_step_(cost.least_micros({.tokens = 1, .seqs = 1})),
      load_timeout_(config.tiers.load_timeout_us),
      tells_(tells),
      metrics_(metrics),
      arrays_(make_arrays(config, model)),
      runtime_(config, {model}, buffers_of(arrays_)),
      copies_(config.tiers),
      in_slot_(static_cast<std::size_t>(model.max_num_seqs)) {}

void Replica::refuse(const TraceRequest& request, Refusal why) {
  metrics_.refuse(request.tenant, why, request.arrival);
  tell({.id = request.id, .has_ended = true, .output_tokens = 0});
}

void Replica::submit(const TraceRequest& request, std::int32_t part_tokens) {
  const TimePoint arrival = request.arrival;
  now_ = std::max(now_, arrival);
  if (request.input_tokens < 1 || request.output_tokens < 1) {
    refuse(request, Refusal::kEmpty);
    return;
  }
  const Admit admit = runtime_.submit({.id = request.id,
                                       .model = ModelId{0},
                                       .tenant = request.tenant,
                                       .band = request.band,
                                       .tokens = prompt_tokens(request, part_tokens),
                                       .max_new_tokens = request.output_tokens,
                                       .min_new_tokens = 0,
                                       .stop_ids = {},
                                       .arrival = arrival,
                                       .deadline = {},
                                       .extras = {},
                                       .compute_all = false});
  if (admit != Admit::kAccepted) {
    refuse(request, refusal_of(admit));
    return;
  }
  may_plan_ = true;
  ++num_accepted_;
  LiveRequest& live = live_[request.id];
  live.id = request.id;
  live.tenant = request.tenant;
  live.arrival = arrival;
  live.totals = &metrics_.accept(request.tenant, arrival);
  live.to_generate = request.output_tokens;
  none_ends_before_ = std::min(none_ends_before_, arrival + shortest_step_ * (request.output_tokens - 1));
}

// A request gets a token per step at most, and no step is shorter than the shortest.
TimePoint Replica::earliest_end() const {
  const TimePoint next = planned_.empty() ? now_ : planned_.front().end;
  if (live_.size() > kMostLooked) return next;
  TimePoint earliest{kMaxMicros};
  for (const auto& [id, live] : live_) {
    earliest = std::min(earliest, next + shortest_step_ * (live.to_generate - live.generated - 1));
  }
  return earliest;
}

std::int64_t Replica::load_before(TimePoint now) {
  if (none_ends_before_ < now) {
    advance(now);
    none_ends_before_ = earliest_end();
  }
  return load();
}

std::optional<TimePoint> Replica::next_event() const {
  if (may_plan_ && planned_.size() < depth_) return now_;
  if (!planned_.empty()) return planned_.front().end;
  return next_copy();
}

// The moment at which a copy, or the wait for one, ends that a request may wait for.
std::optional<TimePoint> Replica::next_copy() const {
  if (live_.empty()) return std::nullopt;
  const std::optional<TimePoint> report = copies_.next_report();
  if (timeouts_.empty()) return report;
  return std::min(timeouts_.front(), report.value_or(timeouts_.front()));
}

bool Replica::advance_by_one(TimePoint until) {
  const auto next = next_event();
  if (!next || *next >= until) return false;
  now_ = *next;
  if (planned_.empty() || (may_plan_ && planned_.size() < depth_)) {
    may_plan_ = plan();
  } else {
    commit();
  }
  return true;
}

void Replica::report_copies() {
  const std::span<const Inbox::TransferReport> due = copies_.take_due(now_);
  if (!due.empty()) runtime_.complete_transfers(due);
  while (!timeouts_.empty() && timeouts_.front() <= now_) timeouts_.pop_front();
}

void Replica::begin_copies(std::span<const std::int64_t> ops, TimePoint start) {
  if (ops.empty()) return;
  copies_.begin(ops, start);
  timeouts_.push_back(now_ + load_timeout_);
}

Micros Replica::duration(const StepInfo& info) const {
  if (info.num_rows == 0) return kBareStep;
  const std::uint64_t number =
      (static_cast<std::uint64_t>(number_) << 40) + static_cast<std::uint64_t>(raw(info.step_id));
  return cost_.micros(arrays_[static_cast<std::size_t>(info.buffer)].work(info), number);
}

bool Replica::plan() {
  report_copies();
  const std::optional<StepInfo> info = runtime_.step(now_);
  if (!info) {
    end_requests();
    return false;
  }
  Planned step;
  if (!spare_.empty()) {
    step = std::move(spare_.back());
    spare_.pop_back();
  }
  step.info = *info;
  step.start = planned_.empty() ? now_ : planned_.back().end;
  step.end = step.start + duration(*info);
  begin_copies(arrays_[static_cast<std::size_t>(info->buffer)].ops_of(*info), step.start);
  find_rows(step);
  planned_.push_back(std::move(step));
  end_requests();
  return true;
}

void Replica::find_rows(Planned& step) {
  const StepArrays& arrays = arrays_[static_cast<std::size_t>(step.info.buffer)];
  const auto rows = static_cast<std::size_t>(step.info.num_rows);
  step.rows.assign(rows, nullptr);
  for (std::size_t row = 0; row < rows; ++row) {
    LiveRequest*& owner = in_slot_[static_cast<std::size_t>(arrays.slots[row])];
    if ((arrays.row_flags[row] & kRowFirst) != 0) owner = &live_.at(RequestId{arrays.request_ids[row]});
    if ((arrays.row_flags[row] & kRowSample) != 0) step.rows[row] = owner;
  }
}

void Replica::commit() {
  Planned step = std::move(planned_.front());
  planned_.pop_front();
  sampled_.clear();
  counts_.clear();
  for (LiveRequest* row : step.rows) {
    counts_.push_back(row != nullptr ? 1 : 0);
    if (row == nullptr) continue;
    sampled_.push_back(generated_token(row->id));
    metrics_.emit(*row, step.end);
    if (row->generated == 1) tell({.id = row->id, .has_ended = false, .output_tokens = 1});
  }
  status_.assign(step.rows.size(), static_cast<std::uint8_t>(RowStatus::kOk));
  record(step);
  runtime_.commit(step.info.step_id, sampled_, counts_, status_, step.end - step.start);
  end_requests();
  may_plan_ = true;
  spare_.push_back(std::move(step));
}

// What ran with the step, before its commit frees anything.
void Replica::record(const Planned& step) {
  const ModelStats stats = this->stats();
  const Micros time = step.end - step.start;
  ++num_steps_;
  busy_ += time;
  peak_active_ = std::max(peak_active_, stats.active_blocks);
  active_block_us_ += static_cast<double>(time) * static_cast<double>(stats.active_blocks);
  metrics_.timeline.add({.from = step.start,
                         .to = step.end,
                         .running = stats.running,
                         .waiting = stats.waiting,
                         .active_blocks = stats.active_blocks,
                         .prefill_tokens = step.info.num_prefill_tokens,
                         .decode_tokens = step.info.num_decodes});
}

void Replica::end_requests() {
  for (const FinishedEvent& event : runtime_.drain_events()) {
    const auto live = live_.find(event.request_id);
    AIRI_CHECK(live != live_.end()) << "request " << raw(event.request_id) << " ended twice";
    AIRI_CHECK(live->second.generated == event.num_generated_tokens)
        << "request " << raw(event.request_id) << " was seen to give " << live->second.generated << " tokens";
    metrics_.finish(live->second, event.reason, number_, event.num_prompt_tokens, event.num_cached_tokens);
    tell({.id = event.request_id, .has_ended = true, .output_tokens = event.num_generated_tokens});
    live_.erase(live);
  }
}

void Replica::take_news(ReplicaNews& out) {
  out.requests.clear();
  std::swap(out.requests, news_);
  const KvEventRing& ring = runtime_.kv_events();
  out.kv.resize(static_cast<std::size_t>(std::min(ring.next() - kv_cursor_, ring.capacity())));
  const RingRead read = ring.read(kv_cursor_, out.kv);
  kv_cursor_ = read.cursor;
  out.is_snapshot = read.missed > 0;
  if (!out.is_snapshot) return;
  KvSnapshot snapshot = runtime_.kv_snapshot(ModelId{0});
  out.kv = std::move(snapshot.stored);
  kv_cursor_ = snapshot.cursor;
}

}  // namespace airi
