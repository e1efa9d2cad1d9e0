#include "sched/model_scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace airi {
namespace {

// How many waiting requests one search past a head that does not fit looks at.
constexpr std::size_t kBypassSearch = 64;

bool contains(const std::vector<TenantId>& tenants, TenantId tenant) {
  return std::ranges::find(tenants, tenant) != tenants.end();
}

}  // namespace

ModelScheduler::ModelScheduler(const SchedulerOptions& options, BlockTables tables, AgingRule aging,
                               const TenantWeights& weights)
    : options_(options),
      chunks_{.block_size = tables.block_size(), .cap = options.max_prefill_chunk},
      tables_(std::move(tables)),
      queue_(options.num_bands, aging, weights),
      running_in_band_(static_cast<std::size_t>(options.num_bands)) {
  const auto seqs = static_cast<std::size_t>(options.max_num_seqs);
  for (auto* requests : {&decodes_, &prefills_, &leaving_}) requests->reserve(seqs);
  for (auto* tenants : {&served_, &overserved_}) tenants->reserve(seqs);
  demands_.reserve(seqs);
  shares_.reserve(seqs);
  for (std::int32_t i = options.max_num_seqs; i-- > 0;) free_slots_.push_back(SlotId{i});
}

void ModelScheduler::plan(TimePoint now, StepWriter& out) {
  band_limit_ = options_.num_bands;
  served_.clear();
  overserved_.clear();
  queue_.promote(now);
  make_room_for_decodes(now, out);
  admit_first(now, out);
  for (Request* request : decodes_) out.add_decode(*request);
  std::int32_t budget = options_.max_batch_tokens - out.num_tokens();
  plan_prefills(budget, out);
  admit_waiting(budget, now, out);
}

std::ptrdiff_t ModelScheduler::num_prefills_ahead(const Request* request) const {
  const auto behind = [=](const Request* other) { return other->band > request->band; };
  return std::ranges::find_if(prefills_, behind) - prefills_.begin();
}

// What is left for the head before the split: each prefill ahead of it takes a block at most, or,
// where that is more, an equal share, which leaves the head its own.
ModelScheduler::Room ModelScheduler::room_before_split(const Request* head) const {
  const std::int64_t ahead = std::ssize(decodes_) + num_prefills_ahead(head) * chunks_.block_size;
  return {.tokens = options_.max_batch_tokens - ahead,
          .reserved_deltas = options_.max_num_seqs + ceil_div(options_.max_batch_tokens, chunks_.block_size)};
}

// Aging moves a request past others in the queue but never costs a request of its own class, which
// merely started earlier, its place: both the present bands and the classes must differ.
bool ModelScheduler::makes_way(const Request* running, const Request* head) const {
  return running->band > head->band && running->first_band > head->first_band &&
         !tables_.admission().is_pinned(*running);
}

// True iff the running request's tenant leads the head's by more than the gap. Leads are comparable
// within a band: each has a ledger of its own. Being pinned does not help: the lead would grow. What
// this step admitted, and has charged for its prompt, is not driven out by it.
bool ModelScheduler::is_overserved(const Request* running, const Request* head) const {
  if (!options_.fairness_gap_tokens || running->band != head->band) return false;
  const std::int64_t lead = queue_.counter(running) - queue_.counter(head);
  return lead > *options_.fairness_gap_tokens * TenantWeight::kOne && !contains(served_, running->tenant);
}

// What this step preempted for others must not come back in it, in whatever guise.
bool ModelScheduler::is_barred(const Request* head) const {
  return head->band >= band_limit_ || contains(overserved_, head->tenant);
}

bool ModelScheduler::is_ahead_of_running(const Request* head) const {
  const auto first = running_in_band_.begin() + head->band + 1;
  if (std::any_of(first, running_in_band_.end(), [](std::int32_t n) { return n > 0; })) return true;
  if (!options_.fairness_gap_tokens) return false;
  const auto runs = [&](const Request* r) { return r->phase != Phase::kWaiting && is_overserved(r, head); };
  return std::ranges::any_of(decodes_, runs) || std::ranges::any_of(prefills_, runs);
}

// A head that is more urgent than something that runs, or far less served, takes its place before
// budget is split, where that leaves it a token. At a slot or block limit it preempts tenants that
// are over-served beyond the gap, also in vain, because the gap must not grow; and then, if that
// makes enough room, less urgent requests.
void ModelScheduler::admit_first(TimePoint now, StepWriter& out) {
  for (Request* head = queue_.head(); head != nullptr; head = queue_.head()) {
    if (is_barred(head) || !is_ahead_of_running(head)) break;
    Admission result = try_admit(head, room_before_split(head), now, out);
    if (result == Admission::kNoBlocks) {
      result = preempt_for(head, [&](const Request* r) { return is_overserved(r, head); }, now, out);
    }
    if (result == Admission::kNoBlocks && can_make_way_for(head)) {
      result = preempt_for(head, [&](const Request* r) { return makes_way(r, head); }, now, out);
    }
    if (result != Admission::kAdmitted) break;
    served_.push_back(head->tenant);
  }
}

template <class Eligible>
ModelScheduler::Admission ModelScheduler::preempt_for(Request* head, Eligible eligible, TimePoint now,
                                                      StepWriter& out) {
  Admission result = Admission::kNoBlocks;
  while (result == Admission::kNoBlocks) {
    Request* victim = choose_victim(eligible);
    if (victim == nullptr) break;
    if (victim->band == head->band) {
      overserved_.push_back(victim->tenant);
    } else {
      band_limit_ = std::min(band_limit_, victim->band);
    }
    preempt(victim, now);
    sweep_running();
    result = try_admit(head, room_before_split(head), now, out);
  }
  return result;
}

bool ModelScheduler::can_make_way_for(Request* head) {
  leaving_.clear();
  for (const auto* running : {&decodes_, &prefills_}) {
    std::ranges::copy_if(*running, std::back_inserter(leaving_),
                         [&](const Request* r) { return makes_way(r, head); });
  }
  if (leaving_.empty()) return false;
  const bool nothing_stays = leaving_.size() == decodes_.size() + prefills_.size();
  return tables_.would_fit(*head, leaving_, nothing_stays);
}

void ModelScheduler::make_room_for_decodes(TimePoint now, StepWriter& out) {
  for (Request* request : decodes_) {
    if (request->phase != Phase::kDecode || request->num_computed < request->covered) continue;
    while (request->phase == Phase::kDecode && !tables_.can_grow(*request)) {
      Request* victim = choose_victim([&](const Request* r) { return !tables_.admission().is_pinned(*r); });
      AIRI_CHECK(victim != nullptr) << "out of blocks with nothing to preempt";
      band_limit_ = std::min(band_limit_, victim->band);
      preempt(victim, now);
    }
    if (request->phase == Phase::kDecode) tables_.grow(*request, 1, out);
  }
  sweep_running();
}

void ModelScheduler::plan_prefills(std::int32_t& budget, StepWriter& out) {
  if (prefills_.empty() || budget <= 0) return;
  demands_.clear();
  for (const Request* r : prefills_) {
    demands_.push_back({.start = r->num_computed, .remaining = r->length() - r->num_computed});
  }
  shares_.assign(demands_.size(), 0);
  split_budget(demands_, budget, chunks_, shares_);
  for (std::size_t i = 0; i < shares_.size(); ++i) plan_chunk(prefills_[i], shares_[i], budget, out);
}

void ModelScheduler::plan_chunk(Request* request, std::int32_t chunk, std::int32_t& budget, StepWriter& out) {
  if (chunk == 0) return;
  tables_.grow(*request, chunk, out);
  out.add_chunk(*request, chunk);
  budget -= chunk;
}

void ModelScheduler::admit_waiting(std::int32_t& budget, TimePoint now, StepWriter& out) {
  while (budget > 0 && !free_slots_.empty()) {
    Request* head = queue_.head();
    if (head == nullptr || is_barred(head)) return;
    const std::size_t running = prefills_.size();
    const Room room{.tokens = budget, .reserved_deltas = ceil_div(budget, chunks_.block_size) + 1};
    const Admission result = try_admit(head, room, now, out);
    if (result == Admission::kNoRoomInStep) return;
    if (result == Admission::kNoBlocks && !admit_past(head, room, now, out)) return;
    AIRI_DCHECK(prefills_.size() == running + 1);
    Request* admitted = newest_;
    const PrefillDemand demand{.start = admitted->num_computed,
                               .remaining = admitted->length() - admitted->num_computed};
    plan_chunk(admitted, greedy_chunk(demand, budget, chunks_), budget, out);
  }
}

ModelScheduler::Admission ModelScheduler::try_admit(Request* request, const Room& room, TimePoint now,
                                                    StepWriter& out) {
  if (room.tokens <= 0) return Admission::kNoRoomInStep;
  const PrefixMatch match = tables_.match(*request);
  if (match.num_blocks + room.reserved_deltas > out.delta_room()) return Admission::kNoRoomInStep;
  const auto demand = tables_.admission().demand(*request, match.num_blocks, match.num_cached);
  const bool nothing_runs = free_slots_.size() == static_cast<std::size_t>(options_.max_num_seqs);
  if (free_slots_.empty() ||
      !tables_.admission().fits(demand, tables_.pool().num_available(), nothing_runs)) {
    return Admission::kNoBlocks;
  }
  dispatch(request, match, demand, now, out);
  return Admission::kAdmitted;
}

std::int64_t ModelScheduler::prompt_charge(const Request* request, std::int32_t hits) const noexcept {
  if (request->dispatched_before()) return 0;
  const std::int64_t computed = request->prompt_length - hits;
  return computed * options_.service.prompt + std::int64_t{hits} * options_.service.hit;
}

void ModelScheduler::dispatch(Request* request, const PrefixMatch& match,
                              const AdmissionControl::Demand& demand, TimePoint now, StepWriter& out) {
  const std::int32_t hits = match.num_blocks * chunks_.block_size;
  queue_.dispatch(request, prompt_charge(request, hits), now);
  if (!request->dispatched_before()) {
    request->num_cached = hits;
    counters_.query_tokens += request->prompt_length;
    counters_.hit_tokens += hits;
  }
  request->slot = free_slots_.back();
  free_slots_.pop_back();
  request->phase = Phase::kPrefill;
  request->first_step = true;
  request->bypassed = 0;
  tables_.admit(*request, match, demand, out);
  ++running_in_band_[static_cast<std::size_t>(request->band)];
  prefills_.insert(prefills_.begin() + num_prefills_ahead(request), request);
  newest_ = request;
}

// The head does not fit. Lets the first one pass that does and whose service, added to what has
// passed the head already, stays within the allowance.
bool ModelScheduler::admit_past(Request* head, const Room& room, TimePoint now, StepWriter& out) {
  const std::int64_t allowance = options_.bypass_tokens - head->bypassed;
  if (allowance <= 0) return false;
  Request* fitting = nullptr;
  std::int64_t service = 0;
  queue_.visit_in_order(head->band, kBypassSearch, [&](Request* candidate) {
    if (candidate == head || is_barred(candidate)) return true;
    const PrefixMatch match = tables_.match(*candidate);
    const std::int32_t to_sample = candidate->max_length - candidate->length();
    service = prompt_charge(candidate, match.num_blocks * chunks_.block_size) +
              std::int64_t{to_sample} * options_.service.decode;
    if (service > allowance) return true;
    const auto demand = tables_.admission().demand(*candidate, match.num_blocks, match.num_cached);
    if (!tables_.admission().fits(demand, tables_.pool().num_available(), false)) return true;
    fitting = candidate;
    return false;
  });
  if (fitting == nullptr || try_admit(fitting, room, now, out) != Admission::kAdmitted) return false;
  head->bypassed += service;
  return true;
}

VictimKey ModelScheduler::victim_key(const Request* request) const {
  const std::int32_t kept = request->num_published * chunks_.block_size;
  return {.band = request->band,
          .counter = queue_.counter(request),
          .lost_tokens = std::max(request->num_computed - kept, 0),
          .freed_blocks = tables_.gain_of_release(*request),
          .arrival = request->arrival,
          .id = request->id};
}

template <class Eligible>
Request* ModelScheduler::choose_victim(Eligible eligible) const {
  Request* victim = nullptr;
  VictimKey worst;
  for (const auto* running : {&decodes_, &prefills_}) {
    for (Request* r : *running) {
      if (r->phase == Phase::kWaiting || !eligible(r)) continue;
      // What comes first in the order is known at once; the rest means counting blocks.
      const auto standing = std::pair(r->band, queue_.counter(r));
      if (victim != nullptr && standing < std::pair(worst.band, worst.counter)) continue;
      const VictimKey key = victim_key(r);
      if (victim != nullptr && !goes_before(key, worst)) continue;
      victim = r;
      worst = key;
    }
  }
  return victim;
}

void ModelScheduler::preempt(Request* request, TimePoint now) {
  stop_running(request);
  ++request->num_preemptions;
  ++counters_.preemptions;
  queue_.push(request, now);
}

// Gives back slot, blocks and place; the running lists are swept later.
void ModelScheduler::stop_running(Request* request) {
  tables_.release(*request);
  free_slots_.push_back(request->slot);
  --running_in_band_[static_cast<std::size_t>(request->band)];
  queue_.end_work(request);
  request->phase = Phase::kWaiting;
  needs_sweep_ = true;
}

void ModelScheduler::sweep_running() {
  if (!needs_sweep_) return;
  needs_sweep_ = false;
  std::erase_if(decodes_, [](const Request* r) { return r->phase != Phase::kDecode; });
  std::erase_if(prefills_, [](const Request* r) { return r->phase != Phase::kPrefill; });
}

void ModelScheduler::drop(Request* request) {
  if (request->phase == Phase::kWaiting) {
    queue_.remove(request);
    return;
  }
  stop_running(request);
  sweep_running();
}

void ModelScheduler::commit(std::span<const PlannedRow> rows, std::span<const std::int32_t> tokens,
                            std::span<const std::int32_t> counts, std::span<const std::uint8_t> status,
                            std::vector<Finished>& finished) {
  auto token = tokens.begin();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const PlannedRow& row = rows[i];
    Request* request = row.request;
    request->num_computed += row.num_tokens;
    const auto own = token;
    token += counts[i];
    if (status[i] != raw(RowStatus::kOk)) {
      tables_.distrust(*request);
      const bool nan = status[i] == raw(RowStatus::kNan);
      finish(request, nan ? FinishReason::kNan : FinishReason::kFailed, finished);
      continue;
    }
    tables_.publish(*request);
    if (row.samples) commit_token(request, *own, finished);
  }
  sweep_running();
}

void ModelScheduler::commit_token(Request* request, std::int32_t token, std::vector<Finished>& finished) {
  request->tokens.push_back(token);
  request->last_token = token;
  queue_.charge(request, options_.service.decode);
  const std::int32_t length = request->length();
  if (length >= request->min_length && request->is_stop(token)) {
    finish(request, FinishReason::kStop, finished);
  } else if (length >= request->max_length) {
    finish(request, FinishReason::kLength, finished);
  } else if (request->phase == Phase::kPrefill) {
    request->phase = Phase::kDecode;
    decodes_.push_back(request);
    needs_sweep_ = true;
  }
}

void ModelScheduler::finish(Request* request, FinishReason reason, std::vector<Finished>& finished) {
  stop_running(request);
  finished.push_back({request, reason});
}

ModelStats ModelScheduler::stats() const {
  ModelStats stats = counters_;
  const BlockPool& pool = tables_.pool();
  stats.waiting = static_cast<std::int64_t>(queue_.size());
  stats.running = static_cast<std::int64_t>(decodes_.size() + prefills_.size());
  stats.capacity = pool.capacity();
  stats.free_blocks = pool.num_free();
  stats.cached_blocks = pool.num_cached();
  stats.active_blocks = pool.num_active();
  stats.evictions = pool.num_evictions();
  return stats;
}

void ModelScheduler::check_invariants() const {
  queue_.check_invariants();
  tables_.pool().check_invariants();
  std::vector<char> used(static_cast<std::size_t>(options_.max_num_seqs), 0);
  std::vector<std::int32_t> refs(static_cast<std::size_t>(tables_.pool().capacity()), 0);
  std::int32_t outstanding = 0;
  for (const auto* running : {&decodes_, &prefills_}) {
    const Phase phase = running == &decodes_ ? Phase::kDecode : Phase::kPrefill;
    for (const Request* r : *running) {
      AIRI_CHECK(r->phase == phase) << "request " << raw(r->id) << " is in the wrong list";
      AIRI_CHECK(!std::exchange(used[index(r->slot)], 1)) << "slot " << raw(r->slot) << " is shared";
      AIRI_CHECK(r->covered == static_cast<std::int32_t>(r->block_table.size()) * chunks_.block_size);
      AIRI_CHECK(r->num_computed <= r->covered && r->num_computed < r->length());
      AIRI_CHECK(!r->first_step) << "request " << raw(r->id) << " was admitted to a step and not planned";
      for (const BlockId block : r->block_table) ++refs[index(block)];
      outstanding += AdmissionControl::promised(*r);
    }
  }
  for (std::size_t i = 0; i < refs.size(); ++i) {
    AIRI_CHECK(refs[i] == tables_.pool().ref_count(BlockId{static_cast<std::int32_t>(i)}))
        << "references of block " << i;
  }
  AIRI_CHECK(outstanding == tables_.admission().outstanding()) << "promises " << outstanding;
  AIRI_CHECK(outstanding <= tables_.pool().num_available()) << "promises exceed what is available";
  AIRI_CHECK(free_slots_.size() + decodes_.size() + prefills_.size() == used.size()) << "slots leak";
}

}  // namespace airi
