#include "sched/admitter.h"

#include <algorithm>
#include <iterator>

namespace airi {
namespace {

// How many waiting requests one search past a head that does not fit looks at.
constexpr std::size_t kBypassSearch = 64;

// How many heads one look at the queue makes best effort.
constexpr int kMostHopeless = 256;

}  // namespace

Admitter::Admitter(const Options& options, const ChunkRule& chunks, BlockTables& tables, WaitingQueue& queue,
                   RunningSet& running, Preemptor& preemptor, Swapper& swapper, PrefixLoader& loader,
                   PrefixDedupe& dedupe, SloPolicy& slo, DecisionLog& log)
    : options_(options),
      chunks_(chunks),
      tables_(tables),
      queue_(queue),
      running_(running),
      preemptor_(preemptor),
      swapper_(swapper),
      loader_(loader),
      dedupe_(dedupe),
      slo_(slo),
      log_(log) {}

Request* Admitter::first_waiting() {
  return queue_.head(tables_.pool().num_forgotten() + 1,
                     [this](Request& request) { return tables_.num_hits(request); });
}

Request* Admitter::next() {
  Request* head = first_waiting();
  if (!slo_.is_active()) return head;
  for (int i = 0; i < kMostHopeless && head != nullptr; ++i, head = first_waiting()) {
    auto until = slo_.hopeless_until(*head, 0);
    if (until) until = slo_.hopeless_until(*head, tables_.num_hits(*head) * chunks_.block_size);
    if (!until) break;
    queue_.make_best_effort(head, *until);
    slo_.note_best_effort();
    log_.write_queued(*head, Decision::kQueuedBestEffort, *until - slo_.start());
  }
  return head;
}

// What is left for the head before the split: each prefill ahead of it takes a block at most, or,
// where that is more, an equal share, which leaves the head its own.
Admitter::Room Admitter::room_before_split(const Request* head) const {
  const auto tokens = std::min<std::int64_t>(options_.max_batch_tokens - std::ssize(running_.decodes()),
                                             slo_.prefill_tokens());
  const std::int32_t blocks = ceil_div(options_.max_batch_tokens, chunks_.block_size);
  return {.tokens = tokens - running_.num_prefills_ahead(head->band) * chunks_.block_size,
          .reserved_deltas = static_cast<std::int32_t>(running_.num_slots()) + blocks};
}

// At a slot or block limit a head preempts tenants that are over-served beyond the gap, also in vain, because
// the gap must not grow; and then, if that makes enough room, less urgent requests.
void Admitter::admit_first(TimePoint now, StepWriter& out) {
  for (Request* head = next(); head != nullptr; head = next()) {
    if (preemptor_.is_barred(head) || !preemptor_.is_ahead_of_running(head)) break;
    const Outcome outcome = make_way(head, try_admit(head, room_before_split(head), now, out), now, out);
    if (outcome == Outcome::kHeld) continue;
    if (outcome != Outcome::kAdmitted) break;
    preemptor_.note_served(head);
  }
}

Admitter::Outcome Admitter::make_way(Request* head, Outcome outcome, TimePoint now, StepWriter& out) {
  const auto retry = [&] {
    running_.sweep();
    return try_admit(head, room_before_split(head), now, out);
  };
  while (outcome == Outcome::kNoBlocks && preemptor_.preempt_overserved(head, now) != nullptr) {
    outcome = retry();
  }
  if (outcome != Outcome::kNoBlocks || !preemptor_.can_make_way_for(head)) return outcome;
  while (outcome == Outcome::kNoBlocks && preemptor_.preempt_less_urgent(head, now) != nullptr) {
    outcome = retry();
  }
  return outcome;
}

// True iff the head may enter the step; else says why not.
bool Admitter::may_enter(Request* head, std::int32_t budget) noexcept {
  if (running_.is_full()) {
    hold_back(head, Decision::kQueuedSlots, static_cast<std::int64_t>(running_.size()));
  } else if (budget <= 0) {
    hold_back(head, Decision::kQueuedBudget, options_.max_batch_tokens);
  } else if (preemptor_.is_barred(head)) {
    hold_back(head, Decision::kQueuedBarred, head->band);
  } else {
    return true;
  }
  return false;
}

Request* Admitter::admit_next(std::int32_t budget, TimePoint now, StepWriter& out) {
  const Room room{.tokens = budget, .reserved_deltas = ceil_div(budget, chunks_.block_size) + 1};
  while (true) {
    Request* head = next();
    if (head == nullptr || !may_enter(head, budget)) return nullptr;
    switch (try_admit(head, room, now, out)) {
      case Outcome::kAdmitted:
        return head;
      case Outcome::kHeld:
        continue;
      case Outcome::kNoBlocks:
        return admit_past(head, room, now, out);
      case Outcome::kNoRoomInStep:
        return nullptr;
    }
  }
}

Admitter::Outcome Admitter::try_admit(Request* request, const Room& room, TimePoint now, StepWriter& out) {
  const auto no_room = [&] {
    hold_back(request, Decision::kQueuedBudget, options_.max_batch_tokens);
    return Outcome::kNoRoomInStep;
  };
  if (room.tokens < (chunks_.is_whole ? request->length() : 1)) return no_room();
  tables_.match(*request, match_);
  const auto loads = loader_.worth_loading(*request, match_);
  const std::int32_t deltas = match_.num_blocks() + static_cast<std::int32_t>(loads.size());
  if (deltas + room.reserved_deltas > out.delta_room()) return no_room();
  if (loads.empty()) {
    const auto held = dedupe_.worth_holding(request, match_.num_blocks(), room.tokens, out);
    if (held) return hold(*held);
  }
  const auto demand = tables_.demand(*request, match_);
  if (running_.is_full()) {
    hold_back(request, Decision::kQueuedSlots, static_cast<std::int64_t>(running_.size()));
    return Outcome::kNoBlocks;
  }
  if (!has_blocks(request, match_, demand)) {
    const bool by_quotas = tables_.is_held_by_quotas(*request, match_, demand, running_.empty());
    hold_back(request, by_quotas ? Decision::kQueuedQuota : Decision::kQueuedBlocks, demand.blocks,
              tables_.available_for(*request, match_, demand) - tables_.admission().outstanding());
    return Outcome::kNoBlocks;
  }
  dispatch(request, match_, loads, demand, now, out);
  return Outcome::kAdmitted;
}

// Where as many are held as could run at once, the request waits in its place.
Admitter::Outcome Admitter::hold(const PrefixDedupe::Held& held) {
  if (dedupe_.is_full()) {
    hold_back(held.request, Decision::kQueuedPrefix, raw(held.producer->id), dedupe_.max_steps());
    return Outcome::kNoRoomInStep;
  }
  dedupe_.hold(held);
  log_.write_queued(*held.request, Decision::kQueuedPrefix, raw(held.producer->id), dedupe_.max_steps());
  forget(held.request);
  return Outcome::kHeld;
}

// Other models' slabs come before a refusal.
bool Admitter::has_blocks(const Request* request, const PrefixMatch& match,
                          const AdmissionControl::Demand& demand) {
  const auto shortage = [&] {
    const std::int32_t available = tables_.available_for(*request, match, demand);
    return tables_.admission().shortage(demand, available, running_.empty());
  };
  return shortage() <= 0 || (tables_.try_extend(shortage()) && shortage() <= 0);
}

std::int64_t Admitter::prompt_charge(const Request* request, std::int32_t hits) const noexcept {
  if (request->dispatched_before()) return 0;
  const std::int64_t computed = request->prompt_length - hits;
  return computed * options_.service.prompt + std::int64_t{hits} * options_.service.hit;
}

void Admitter::dispatch(Request* request, const PrefixMatch& match, std::span<const BlockPool::Known> loads,
                        const AdmissionControl::Demand& demand, TimePoint now, StepWriter& out) {
  const std::int32_t loaded = static_cast<std::int32_t>(loads.size()) * chunks_.block_size;
  const std::int32_t hits = match.num_blocks() * chunks_.block_size + loaded;
  queue_.dispatch(request, prompt_charge(request, hits), now);
  if (!request->dispatched_before()) {
    request->num_cached = hits;
    counters_.query_tokens += request->prompt_length;
    counters_.hit_tokens += hits;
    counters_.loaded_tokens += loaded;
  }
  request->bypassed = 0;
  request->queued_for = raw(Decision::kNone);
  forget(request);
  if (loads.empty()) {
    running_.enter(request);
  } else {
    running_.enter_loading(request);
  }
  tables_.admit(*request, match, demand, out);
  if (!loads.empty()) loader_.begin(*request, loads, now, out);
  swapper_.release(*request);
  log_.write(*request, Decision::kAdmitted, hits, demand.reserved);
}

// Says why the head waits. What was held back before it and waits still, waits for its turn now.
void Admitter::hold_back(Request* head, Decision why, std::int64_t a, std::int64_t b) noexcept {
  if (!log_.enabled()) return;
  if (held_back_ != nullptr && held_back_ != head) {
    log_.write_queued(*held_back_, Decision::kQueuedTurn, raw(head->id),
                      static_cast<std::int64_t>(queue_.size()));
  }
  held_back_ = head;
  log_.write_queued(*head, why, a, b);
}

void Admitter::charge_missing(Request* request, std::int32_t blocks) {
  if (request->num_preemptions > 0) return;
  const std::int32_t missing = std::min(blocks * chunks_.block_size, *request->num_cached);
  *request->num_cached -= missing;
  counters_.hit_tokens -= missing;
  counters_.loaded_tokens -= missing;
  const std::int64_t more = std::int64_t{options_.service.prompt} - options_.service.hit;
  queue_.charge(request, missing * std::max<std::int64_t>(more, 0));
}

// The head does not fit. Lets the first one pass that does and whose service, added to what has
// passed the head already, stays within the allowance.
Request* Admitter::admit_past(Request* head, const Room& room, TimePoint now, StepWriter& out) {
  const std::int64_t allowance = options_.bypass_tokens - head->bypassed;
  if (allowance <= 0) return nullptr;
  Request* fitting = nullptr;
  std::int64_t service = 0;
  const auto fits = [&](Request* candidate) {
    if (candidate == head || preemptor_.is_barred(candidate)) return false;
    tables_.match(*candidate, match_);
    const std::int32_t to_sample = candidate->max_length - candidate->length();
    service = prompt_charge(candidate, match_.num_blocks() * chunks_.block_size) +
              std::int64_t{to_sample} * options_.service.decode;
    if (service > allowance) return false;
    const auto demand = tables_.demand(*candidate, match_);
    return tables_.admission().fits(demand, tables_.available_for(*candidate, match_, demand), false);
  };
  Outcome outcome = Outcome::kHeld;
  while (outcome == Outcome::kHeld) {
    fitting = nullptr;
    queue_.visit_in_order(head->band, kBypassSearch, [&](Request* candidate) {
      if (fits(candidate)) fitting = candidate;
      return fitting == nullptr;
    });
    if (fitting == nullptr) return nullptr;
    outcome = try_admit(fitting, room, now, out);
  }
  if (outcome != Outcome::kAdmitted) return nullptr;
  head->bypassed += service;
  return fitting;
}

}  // namespace airi
