#include "sched/slo_policy.h"

#include <algorithm>
#include <utility>

namespace airi {
namespace {

constexpr std::int32_t kMostContext = 1 << 30;
// How long best effort lasts, in targets. Who comes back goes first, as the older one, and in an overload
// makes another late: the sooner, the fewer are in time.
constexpr Micros kStaysOfTarget = 300;

}  // namespace

SloPolicy::SloPolicy(const Options& options, std::vector<SloTarget> targets, const StepTimeModel& step_time)
    : options_(options),
      step_time_(step_time),
      budget_({.tile = options.block_size, .max_tokens = options.max_batch_tokens}) {
  const auto promises = [](const SloTarget& t) { return t.ttft || t.itl; };
  if (std::ranges::none_of(targets, promises)) return;
  for (const SloTarget& target : targets) {
    const auto saved = static_cast<double>(target.itl.value_or(0)) * options.itl_credit;
    classes_.push_back({.target = target, .most_saved = static_cast<Micros>(saved)});
  }
  decodes_.resize(static_cast<std::size_t>(options.num_bands) + 1);
}

const SloPolicy::Class* SloPolicy::class_of(const Request& request) const noexcept {
  const auto at = static_cast<std::size_t>(request.first_band);
  return at < classes_.size() ? &classes_[at] : nullptr;
}

std::optional<TimePoint> SloPolicy::first_due(const Request& request) const noexcept {
  const Class* own = class_of(request);
  if (own == nullptr || !own->target.ttft || request.length() > request.prompt_length) return std::nullopt;
  return request.arrival + *own->target.ttft;
}

// When the token that this step may sample for a decode is due. A token that a step in flight samples is
// expected when that step ends, and this one begins.
std::optional<TimePoint> SloPolicy::next_due(const Request& request) const noexcept {
  const Class* own = class_of(request);
  if (own == nullptr || !own->target.itl || request.num_computed >= own->feasible_context)
    return std::nullopt;
  if (!request.awaits_token()) return request.token_due;
  if (request.generated() == 0) return start_ + *own->target.itl;
  return next_token_due(request.token_due, start_, *own->target.itl, own->most_saved);
}

PrefillLoad SloPolicy::load_of(const Request& prefill) const noexcept {
  PrefillLoad load{.context = prefill.num_computed,
                   .remaining = prefill.length() - prefill.num_computed,
                   .band = prefill.band,
                   .due = {}};
  if (!prefill.was_best_effort) load.due = first_due(prefill);
  return load;
}

void SloPolicy::begin_step(TimePoint start) noexcept {
  start_ = start;
  grant_ = {};
  grant_.prefill_tokens = options_.max_batch_tokens;
}

std::optional<TimePoint> SloPolicy::hopeless_until(const Request& request,
                                                   std::int32_t num_cached) const noexcept {
  if (request.was_best_effort || !step_time_.is_trained()) return std::nullopt;
  const auto due = first_due(request);
  if (!due) return std::nullopt;
  const PrefillLoad alone{
      .context = num_cached, .remaining = request.length() - num_cached, .band = 0, .due = due};
  if (SloBudget::is_feasible(step_time_, start_, alone)) return std::nullopt;
  const Micros ttft = std::min(*class_of(request)->target.ttft, kMaxMicros / kStaysOfTarget);
  return start_ + std::max({kStaysOfTarget * ttft, options_.aging.value_or(0), Micros{1}});
}

// Classes often have the same target: one search serves all of those in a row.
void SloPolicy::find_feasible_contexts() noexcept {
  const Class* before = nullptr;
  for (Class& own : classes_) {
    if (!own.target.itl) continue;
    if (before != nullptr && before->target.itl == own.target.itl) {
      own.feasible_context = before->feasible_context;
    } else {
      const auto micros = static_cast<double>(*own.target.itl);
      own.feasible_context = largest_context(step_time_, micros, kMostContext).value_or(0);
    }
    before = &own;
  }
}

void SloPolicy::grant(const RunningSet& running, const Request* waiting) noexcept {
  if (!is_active()) return;
  find_feasible_contexts();
  std::ranges::fill(decodes_, DecodeLoad{});
  for (const Request* r : running.decodes()) {
    if (r->is_planned_out()) continue;
    DecodeLoad& load = decodes_[static_cast<std::size_t>(r->band)];
    ++load.count;
    load.context += r->num_computed + 1;
    const auto due = next_due(*r);
    if (due && (!load.due || *due < *load.due)) load.due = due;
  }
  prefills_.clear();
  for (const Request* r : running.prefills()) prefills_.push_back(load_of(*r));
  std::optional<PrefillLoad> next;
  if (waiting != nullptr) next = load_of(*waiting);
  grant_ = budget_.decide(step_time_, start_, decodes_, prefills_, next);
  // A full step is one that nothing but its size bounds, also where decodes leave it yet.
  std::int64_t decodes = 0;
  for (const DecodeLoad& load : decodes_) decodes += load.count;
  if (decodes + grant_.prefill_tokens >= options_.max_batch_tokens) {
    grant_.prefill_tokens = options_.max_batch_tokens;
  }
}

// What cannot be in time any more presses no longer: there is nothing to borrow for.
bool SloPolicy::is_pressed(const RunningSet& running, Micros wait) const noexcept {
  StepWork work;
  for (const Request* r : running.decodes()) {
    if (!r->is_planned_out()) work.add_decode(r->num_computed + 1);
  }
  const auto would_miss = [&](std::optional<TimePoint> due, double micros) {
    if (!due) return false;
    const double left = static_cast<double>(*due - start_) - micros;
    return left >= 0 && left < static_cast<double>(wait);
  };
  const double decodes = step_time_.estimate(work);
  const bool presses = std::ranges::any_of(running.decodes(), [&](const Request* r) {
    return !r->is_planned_out() && would_miss(next_due(*r), decodes);
  });
  if (presses) return true;
  return std::ranges::any_of(running.prefills(), [&](const Request* r) {
    const PrefillLoad load = load_of(*r);
    if (!load.due || load.remaining < 1 || load.remaining > options_.max_batch_tokens) return false;
    StepWork with = work;
    with.add_chunk(load.context, load.remaining);
    return would_miss(load.due, step_time_.estimate(with));
  });
}

void SloPolicy::regrant(const RunningSet& running) noexcept {
  if (!is_active()) return;
  prefills_.clear();
  std::int64_t admitted = 0;  // a block each for all up to the last that was
  for (const Request* r : running.prefills()) {
    prefills_.push_back(load_of(*r));
    if (r->first_step) admitted = std::ssize(prefills_) * options_.block_size;
  }
  if (admitted == 0) return;
  StepWork work;
  for (const Request* r : running.decodes()) {
    if (!r->is_planned_out() && !rests(*r)) work.add_decode(r->num_computed + 1);
  }
  const std::int32_t tokens =
      largest_prefill(step_time_, work, prefills_, grant_.micros, options_.block_size, grant_.prefill_tokens);
  const auto least = static_cast<std::int32_t>(std::min<std::int64_t>(admitted, grant_.prefill_tokens));
  grant_.prefill_tokens = std::max(tokens, least);
}

bool SloPolicy::has_room(const StepWork& work) const noexcept {
  return grant_.micros == std::numeric_limits<double>::infinity() ||
         step_time_.estimate(with_prefills(work, {}, options_.block_size)) <= grant_.micros;
}

std::int32_t SloPolicy::room_for(const StepWork& work, std::int32_t context,
                                 std::int32_t most) const noexcept {
  if (grant_.micros == std::numeric_limits<double>::infinity()) return most;
  const PrefillLoad prompt{.context = context, .remaining = most, .band = 0, .due = {}};
  const std::int32_t tile = options_.block_size;
  return std::max(largest_prefill(step_time_, work, {&prompt, 1}, grant_.micros, tile, most),
                  std::min(tile, most));
}

void SloPolicy::note_token(Request& request, std::int32_t at, TimePoint emitted) noexcept {
  const Class* own = class_of(request);
  if (own == nullptr) return;
  const bool is_first = at == request.prompt_length;
  const std::optional<Micros> target = is_first ? own->target.ttft : own->target.itl;
  if (target) {
    const TimePoint due = is_first ? request.arrival + *target : request.token_due;
    const bool is_late = emitted > due;
    request.was_late = request.was_late || is_late;
    if (is_first) {
      ++(is_late ? counters_.first_tokens_late : counters_.first_tokens_on_time);
    } else {
      ++(is_late ? counters_.next_tokens_late : counters_.next_tokens_on_time);
      if (at <= own->feasible_context) budget_.gain().note(is_late);
    }
  }
  if (!own->target.itl) return;
  request.token_due = is_first
                          ? emitted + *own->target.itl
                          : next_token_due(request.token_due, emitted, *own->target.itl, own->most_saved);
}

void SloPolicy::note_end(const Request& request) noexcept {
  const Class* own = class_of(request);
  if (own == nullptr || !(own->target.ttft || own->target.itl)) return;
  ++(request.was_late ? counters_.requests_late : counters_.requests_on_time);
}

}  // namespace airi
