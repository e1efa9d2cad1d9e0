#include "sched/model_scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace airi {
namespace {

std::optional<WaitingQueue::Locality> locality_of(const SchedulerOptions& options, std::int32_t block_size) {
  if (!options.locality_quantum_tokens) return std::nullopt;
  return WaitingQueue::Locality{.quantum_tokens = *options.locality_quantum_tokens, .block_size = block_size};
}

// Best effort has a band of its own behind those of the classes.
std::int32_t num_bands(const SchedulerOptions& options) {
  return options.num_bands + (options.targets.empty() ? 0 : 1);
}

}  // namespace

ModelScheduler::ModelScheduler(const SchedulerOptions& options, BlockTables tables, AgingRule aging,
                               const TenantWeights& weights, StepTimeModel& step_time, DecisionLog& log)
    : options_(options),
      chunks_{.block_size = tables.block_size(),
              .cap = options.max_prefill_chunk,
              .is_whole = options.whole_prompts},
      tables_(std::move(tables)),
      queue_(num_bands(options), aging, weights, locality_of(options, tables_.block_size())),
      running_(options.max_num_seqs, num_bands(options)),
      step_time_(step_time),
      swapper_(std::min(options.max_batch_tokens, options.max_prefill_chunk), tables_, step_time_),
      preemptor_(options.fairness_gap_tokens, num_bands(options), tables_, queue_, running_, swapper_, log),
      loader_({.chunk = std::min(options.max_batch_tokens, options.max_prefill_chunk),
               .timeout = options.load_timeout},
              tables_, running_, step_time_),
      slo_({.num_bands = options.num_bands,
            .block_size = chunks_.block_size,
            .max_batch_tokens = options.max_batch_tokens,
            .aging = aging.interval(),
            .itl_credit = options.itl_credit},
           options.targets, step_time_),
      dedupe_(options.dedupe_steps, chunks_, step_time_, running_, queue_),
      admitter_({.max_batch_tokens = options.max_batch_tokens,
                 .bypass_tokens = options.bypass_tokens,
                 .service = options.service},
                chunks_, tables_, queue_, running_, preemptor_, swapper_, loader_, dedupe_, slo_, log),
      log_(log) {
  demands_.reserve(running_.num_slots());
  shares_.reserve(running_.num_slots());
}

void ModelScheduler::accept(Request* request, TimePoint now) {
  loader_.prefetch(*request, now);
  queue_.push(request, request->arrival);
  log_.write(*request, Decision::kSubmitted, request->prompt_length,
             request->max_length - request->prompt_length);
  const Request* head = log_.enabled() ? admitter_.first_waiting() : request;
  if (head == request) return;
  log_.write_queued(*request, Decision::kQueuedTurn, raw(head->id), static_cast<std::int64_t>(queue_.size()));
}

void ModelScheduler::plan(TimePoint now, TimePoint start, StepWriter& out) {
  preemptor_.begin_step();
  tables_.begin_step(now);
  slo_.begin_step(start);
  queue_.begin_step();
  dedupe_.begin_step();
  queue_.promote(now);
  make_room_for_decodes(now, out);
  dedupe_.release_orphans(now);
  if (slo_.is_active()) slo_.grant(running_, admissible());
  admitter_.admit_first(now, out);
  slo_.regrant(running_);
  dedupe_.release_orphans(now);
  plan_decodes(out);
  std::int32_t budget = std::min(options_.max_batch_tokens - out.num_tokens(), slo_.prefill_tokens());
  plan_prefills(budget, out);
  admit_waiting(budget, now, out);
  dedupe_.end_step(out.work());
  count_on(out.rows());
}

void ModelScheduler::stop_loading(Request* request, TimePoint now) {
  preemptor_.stop(request, Phase::kWaiting);
  queue_.end_work(request);
  queue_.push(request, now);
}

void ModelScheduler::preempt_all(TimePoint now) {
  preemptor_.preempt_all(now);
  stop_all_loading(now);
}

void ModelScheduler::vacate(SlabId slab, TimePoint now) {
  // Theirs are the promises that preemption cannot take back.
  stop_all_loading(now);
  preemptor_.vacate(slab, now);
}

void ModelScheduler::stop_all_loading(TimePoint now) {
  while (Request* request = loader_.oldest()) {
    loader_.abandon(*request);
    stop_loading(request, now);
  }
}

void ModelScheduler::advance_loads(TimePoint now) {
  if (tables_.pool().tiers() == nullptr) return;
  loader_.advance(
      now,
      [&](Request* request, std::int32_t missing) {
        publish(request, request->num_computed);
        request->num_hit_blocks = request->num_published;
        admitter_.charge_missing(request, missing);
      },
      [&](Request* request, std::int32_t missing) {
        // A transfer writes its blocks: it gives them up, and comes back to compute.
        admitter_.charge_missing(request, missing);
        request->loads_nothing = true;
        stop_loading(request, now);
      });
  tables_.pool().tiers()->spill_oldest();
  tables_.pool().drop_lost();
}

// The head of the queue, where slots and blocks are left that it might be admitted to.
const Request* ModelScheduler::admissible() {
  const Request* head = admitter_.next();
  const bool has_blocks = tables_.pool().num_available() > tables_.admission().outstanding();
  return running_.is_full() || !has_blocks ? nullptr : head;
}

void ModelScheduler::make_room_for_decodes(TimePoint now, StepWriter& out) {
  for (Request* request : running_.decodes()) {
    const auto needs_block = [=] {
      return request->phase == Phase::kDecode && !request->is_planned_out() &&
             request->num_computed >= request->covered;
    };
    while (needs_block() && !tables_.can_grow(*request)) {
      if (tables_.try_extend(1)) continue;
      const Request* victim = preemptor_.preempt_for_memory(request, now);
      AIRI_CHECK(victim != nullptr) << "out of blocks with nothing to preempt";
    }
    if (needs_block()) tables_.grow(*request, 1, out);
  }
  running_.sweep();
}

void ModelScheduler::plan_decodes(StepWriter& out) {
  for (Request* request : running_.decodes()) {
    if (request->is_planned_out()) continue;
    if (slo_.rests(*request)) {
      slo_.note_rest();
    } else {
      out.add_decode(*request);
    }
  }
}

void ModelScheduler::plan_prefills(std::int32_t& budget, StepWriter& out) {
  const auto& prefills = running_.prefills();
  if (prefills.empty() || budget <= 0) return;
  demands_.clear();
  for (const Request* r : prefills) {
    demands_.push_back({.start = r->num_computed, .remaining = r->length() - r->num_computed});
  }
  shares_.assign(demands_.size(), 0);
  split_budget(demands_, budget, chunks_, shares_);
  for (std::size_t i = 0; i < shares_.size(); ++i) plan_chunk(prefills[i], shares_[i], budget, out);
}

void ModelScheduler::plan_chunk(Request* request, std::int32_t chunk, std::int32_t& budget, StepWriter& out) {
  if (chunk == 0) return;
  tables_.grow(*request, chunk, out);
  out.add_chunk(*request, chunk);
  budget -= chunk;
  const std::int32_t left = request->length() - request->num_computed - chunk;
  if (left > 0) log_.write(*request, Decision::kChunked, chunk, left);
}

void ModelScheduler::admit_waiting(std::int32_t& budget, TimePoint now, StepWriter& out) {
  const auto left = [&] { return slo_.has_room(out.work()) ? budget : 0; };
  while (Request* admitted = admitter_.admit_next(left(), now, out)) {
    if (admitted->phase == Phase::kLoading) continue;
    const PrefillDemand demand{.start = admitted->num_computed,
                               .remaining = admitted->length() - admitted->num_computed};
    const std::int32_t room = slo_.room_for(out.work(), demand.start, std::min(budget, demand.remaining));
    plan_chunk(admitted, greedy_chunk(demand, room, chunks_), budget, out);
  }
}

// From here on the step's tokens count as computed, and those it samples as known but for their value.
void ModelScheduler::count_on(std::span<PlannedRow> rows) {
  running_.age_decodes();
  for (PlannedRow& row : rows) {
    Request* request = row.request;
    request->num_computed = row.end;
    row.earlier = request->rows_in_flight > 0 ? request->newest_row : nullptr;
    request->newest_row = &row;
    ++request->rows_in_flight;
    if (!row.samples) continue;
    ++request->pending_tokens;
    request->tokens.push_back(kPendingToken);
    request->last_token = kPendingToken;
    if (request->phase == Phase::kPrefill) running_.begin_decoding(request);
  }
  running_.sweep();
}

void ModelScheduler::drop(Request* request) {
  forget_rows(*request);
  swapper_.release(*request);
  switch (request->phase) {
    case Phase::kWaiting:
      queue_.remove(request);
      admitter_.forget(request);
      return;
    case Phase::kParked:
      preemptor_.unpark(request, true);
      return;
    case Phase::kHeld:
      dedupe_.remove(request);
      return;
    case Phase::kLoading:
      loader_.abandon(*request);
      [[fallthrough]];
    case Phase::kPrefill:
    case Phase::kDecode:
      preemptor_.stop(request, Phase::kWaiting);
      queue_.end_work(request);
      running_.sweep();
  }
}

void ModelScheduler::commit(std::span<const PlannedRow> rows, std::span<const std::int32_t> tokens,
                            std::span<const std::int32_t> counts, std::span<const std::uint8_t> status,
                            const StepTiming& timing, std::vector<Finished>& finished) {
  // A step that failed may have ended early; one without rows only moved memory.
  if (!rows.empty() && std::ranges::find(status, raw(RowStatus::kFailed)) == status.end()) {
    step_time_.observe(timing.work, static_cast<double>(timing.device_time));
  }
  auto token = tokens.begin();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const PlannedRow& row = rows[i];
    const auto own = token;
    token += counts[i];
    Request* request = row.request;
    if (request == nullptr) continue;
    --request->rows_in_flight;
    if (status[i] != raw(RowStatus::kOk)) {
      tables_.distrust(*request);
      const bool nan = status[i] == raw(RowStatus::kNan);
      finish(request, nan ? FinishReason::kNan : FinishReason::kFailed, finished);
      continue;
    }
    if (request->phase != Phase::kParked) publish(request, row.end);
    if (row.samples) commit_token(request, row.end, *own, timing.emitted, finished);
  }
  running_.sweep();
}

void ModelScheduler::publish(Request* request, std::int32_t computed) {
  const std::int32_t first = request->num_published;
  tables_.publish(*request, computed);
  if (queue_.locality_counts()) queue_.note_published(*request, first);
}

void ModelScheduler::commit_token(Request* request, std::int32_t at, std::int32_t token, TimePoint emitted,
                                  std::vector<Finished>& finished) {
  --request->pending_tokens;
  request->tokens[static_cast<std::size_t>(at)] = token;
  const std::int32_t length = at + 1;
  if (length == request->length()) request->last_token = token;
  queue_.charge(request, options_.service.decode);
  if (slo_.is_active()) slo_.note_token(*request, at, emitted);
  if (length >= request->min_length && request->is_stop(token)) {
    slo_.note_end(*request);
    finish(request, FinishReason::kStop, finished);
  } else if (length >= request->max_length) {
    slo_.note_end(*request);
    finish(request, FinishReason::kLength, finished);
  } else if (request->phase == Phase::kParked && !request->awaits_token()) {
    preemptor_.unpark(request, false);
  }
}

void ModelScheduler::finish(Request* request, FinishReason reason, std::vector<Finished>& finished) {
  forget_rows(*request);
  swapper_.release(*request);
  if (request->phase == Phase::kParked) {
    preemptor_.unpark(request, true);
  } else {
    preemptor_.stop(request, Phase::kWaiting);
    queue_.end_work(request);
  }
  finished.push_back({request, reason});
}

// What runs, and of what waits as much as has a slot.
std::int64_t ModelScheduler::num_wanted() const noexcept {
  const std::int64_t running = std::int64_t{tables_.pool().num_active()} + num_promised();
  const auto waiting = static_cast<std::int64_t>(queue_.size());
  if (waiting == 0) return running;
  const std::int64_t tokens =
      tables_.admission().reserves_to_completion() ? queue_.num_tokens_at_most() : queue_.num_tokens();
  const auto free_slots = static_cast<std::int64_t>(running_.num_slots() - running_.size());
  const std::int64_t blocks = tokens / chunks_.block_size + waiting;
  return running + blocks * std::min(waiting, std::max<std::int64_t>(free_slots, 1)) / waiting;
}

ModelStats ModelScheduler::stats() const {
  ModelStats stats;
  const BlockPool& pool = tables_.pool();
  stats.waiting = num_waiting();
  stats.running = static_cast<std::int64_t>(running_.size());
  stats.capacity = pool.num_present();
  stats.free_blocks = pool.num_free();
  stats.cached_blocks = pool.num_cached();
  stats.active_blocks = pool.num_active();
  stats.query_tokens = admitter_.counters().query_tokens;
  stats.hit_tokens = admitter_.counters().hit_tokens;
  stats.loaded_tokens = admitter_.counters().loaded_tokens;
  stats.preemptions = preemptor_.num_preemptions();
  stats.evictions = pool.num_evictions();
  stats.swaps = swapper_.num_swaps();
  if (pool.tiers() != nullptr) stats.tiers = pool.tiers()->stats();
  stats.dedupe_holds = dedupe_.num_holds();
  stats.slo = slo_.counters();
  return stats;
}

void ModelScheduler::check_invariants() const {
  queue_.check_invariants();
  tables_.pool().check_invariants();
  running_.check_invariants();
  AIRI_CHECK(static_cast<std::int64_t>(swapper_.num_kept()) <= num_waiting()) << "copies are kept for nobody";
  dedupe_.check_invariants();
  std::vector<std::int32_t> refs(static_cast<std::size_t>(tables_.pool().capacity()), 0);
  std::int32_t outstanding = 0;
  const auto check_blocks = [&](const Request* r) {
    AIRI_CHECK(r->covered == static_cast<std::int32_t>(r->block_table.size()) * chunks_.block_size);
    AIRI_CHECK(r->num_computed <= r->covered && r->num_computed < r->length());
    AIRI_CHECK(r->pending_tokens <= r->rows_in_flight) << "request " << raw(r->id) << " awaits no row";
    for (const BlockId block : r->block_table) ++refs[index(block)];
    outstanding += AdmissionControl::promised(*r);
  };
  running_.for_each(check_blocks);
  loader_.for_each(check_blocks);
  if (const TierCache* tiers = tables_.pool().tiers()) {
    tiers->check_invariants();
    for (const BlockId block : tiers->blocks_being_loaded()) ++refs[index(block)];
  }
  for (std::size_t i = 0; i < refs.size(); ++i) {
    AIRI_CHECK(refs[i] == tables_.pool().ref_count(BlockId{static_cast<std::int32_t>(i)}))
        << "references of block " << i;
  }
  AIRI_CHECK(outstanding == tables_.admission().outstanding()) << "promises " << outstanding;
  AIRI_CHECK(tables_.num_spoken_for() <= tables_.pool().num_available())
      << "promises and quotas exceed what is available";
}

}  // namespace airi
