#include "sched/prefix_dedupe.h"

#include <algorithm>

#include "base/check.h"

namespace airi {
namespace {

// How many leading blocks both have, given that they have `common`. The last token is always computed.
std::int32_t shared_blocks(const Request& a, const Request& b, std::int32_t common, std::int32_t block_size) {
  const auto most = static_cast<std::int32_t>(
      std::min({a.hashes.size(), b.hashes.size(), static_cast<std::size_t>((a.length() - 1) / block_size)}));
  const auto equal = [&](std::int32_t i) {
    return a.hashes[static_cast<std::size_t>(i)] == b.hashes[static_cast<std::size_t>(i)];
  };
  while (common < most && equal(common)) ++common;
  return common;
}

std::int32_t tokens_in(std::span<const PlannedRow> rows, const Request* request) {
  const auto row = std::ranges::find(rows, request, &PlannedRow::request);
  return row == rows.end() ? 0 : row->num_tokens;
}

}  // namespace

PrefixDedupe::PrefixDedupe(std::int32_t max_steps, const ChunkRule& chunks, const StepTimeModel& step_time,
                           const RunningSet& running, WaitingQueue& queue)
    : max_steps_(max_steps), chunks_(chunks), step_time_(step_time), running_(running), queue_(queue) {}

bool PrefixDedupe::runs(const Held& held) const {
  const auto is_producer = [&](const Request* r) { return r == held.producer && r->serial == held.serial; };
  return std::ranges::any_of(
             running_.prefills(),
             [&](const Request* r) { return r->phase == Phase::kPrefill && is_producer(r); }) ||
         std::ranges::any_of(running_.newest_decodes(),
                             [&](const Request* r) { return r->phase == Phase::kDecode && is_producer(r); });
}

// A request that runs, has not published the block, and will. Of several, the first in order of decision.
const Request* PrefixDedupe::producer_of(const Request& request, std::int32_t block) const {
  const auto at = static_cast<std::size_t>(block);
  const auto computes = [&](const Request* r) {
    return r->num_published <= block && at < r->hashes.size() && r->hashes[at] == request.hashes[at];
  };
  for (const Request* r : running_.newest_decodes()) {
    if (r->phase == Phase::kDecode && computes(r)) return r;
  }
  for (const Request* r : running_.prefills()) {
    if (r->phase == Phase::kPrefill && computes(r)) return r;
  }
  return nullptr;
}

// Both ways begin with this step. Held, the request waits for those that the producer needs beyond it and
// runs in one more, which takes what a step takes without work; not held, it needs as many as its own share
// of steps asks.
bool PrefixDedupe::pays(const Outlook& outlook, const StepWork& step) const {
  const double usual = step_time_.estimate(step);
  const std::int32_t own = std::min(outlook.shared, outlook.room);
  StepWork with = step;
  with.tokens += own;
  with.prefill_pairs += own * (outlook.context + 0.5 * own);
  const double gain = (ceil_div(outlook.shared, own) - 1) * usual + (step_time_.estimate(with) - usual);
  const std::int32_t more = std::max(outlook.missing - outlook.chunk, 0);
  const double wait = ceil_div(more, std::max(outlook.chunk, 1)) * usual + step_time_.estimate({});
  return gain >= wait;
}

std::optional<PrefixDedupe::Held> PrefixDedupe::worth_holding(Request* request, std::int32_t num_matched,
                                                              std::int64_t room,
                                                              const StepWriter& planned) const {
  if (max_steps_ == 0 || request->compute_all || request->held_steps >= max_steps_) return std::nullopt;
  if (num_matched >= (request->length() - 1) / chunks_.block_size) return std::nullopt;
  if (static_cast<std::size_t>(num_matched) >= request->hashes.size()) return std::nullopt;
  const Request* producer = producer_of(*request, num_matched);
  if (producer == nullptr) return std::nullopt;
  const std::int32_t target = shared_blocks(*request, *producer, num_matched, chunks_.block_size);
  Outlook outlook{.shared = (target - num_matched) * chunks_.block_size,
                  .context = num_matched * chunks_.block_size,
                  .room = static_cast<std::int32_t>(std::min<std::int64_t>(room, chunks_.cap)),
                  .missing = target * chunks_.block_size - producer->num_computed};
  // Before prefills are planned, a producer is taken to get what a single one would.
  const bool is_split = planned.num_rows() > 0;
  outlook.chunk = is_split ? tokens_in(planned.rows(), producer) : outlook.missing;
  if (outlook.missing > 0 && outlook.chunk == 0) return std::nullopt;
  if (!pays(outlook, is_split ? planned.work() : latest_)) return std::nullopt;
  return Held{.request = request,
              .producer = producer,
              .serial = producer->serial,
              .matched = num_matched,
              .target = target,
              .room = outlook.room,
              .computed = producer->num_computed};
}

void PrefixDedupe::hold(const Held& held) {
  queue_.remove(held.request);
  held.request->phase = Phase::kHeld;
  ++held.request->held_steps;
  ++num_holds_;
  held_.push_back(held);
}

// REQUIRES: the producer runs.
bool PrefixDedupe::still_holds(const Held& held) const {
  const Request& producer = *held.producer;
  if (held.request->held_steps >= max_steps_ || producer.num_published >= held.target) return false;
  const std::int32_t indexed = std::max(producer.num_published, held.matched) * chunks_.block_size;
  const Outlook outlook{.shared = held.target * chunks_.block_size - indexed,
                        .context = indexed,
                        .room = held.room,
                        .missing = held.target * chunks_.block_size - producer.num_computed,
                        .chunk = producer.num_computed - held.computed};
  return (outlook.missing <= 0 || outlook.chunk > 0) && pays(outlook, latest_);
}

// True iff some went back to the queue.
template <class Condition>
bool PrefixDedupe::keep_where(Condition condition) {
  return std::erase_if(held_, [&](Held& held) {
           if (condition(held)) return false;
           queue_.push(held.request, held.request->waiting_since);
           return true;
         }) > 0;
}

void PrefixDedupe::begin_step() {
  keep_where([this](Held& held) {
    if (!runs(held) || !still_holds(held)) return false;
    held.computed = held.producer->num_computed;
    ++held.request->held_steps;
    return true;
  });
}

// What comes back stands in the band that it has aged to, as if it had never left the queue.
void PrefixDedupe::release_orphans(TimePoint now) {
  if (keep_where([this](const Held& held) { return runs(held); })) queue_.promote(now);
}

void PrefixDedupe::remove(const Request* request) {
  std::erase_if(held_, [=](const Held& held) { return held.request == request; });
}

void PrefixDedupe::check_invariants() const {
  AIRI_CHECK(held_.size() <= running_.num_slots()) << held_.size() << " requests are held";
  for (const Held& held : held_) {
    AIRI_CHECK(held.request->phase == Phase::kHeld) << "request " << raw(held.request->id) << " is not held";
    AIRI_CHECK(held.request->held_steps <= max_steps_)
        << "request " << raw(held.request->id) << " was held for " << held.request->held_steps << " steps";
    AIRI_CHECK(held.request->block_table.empty()) << "request " << raw(held.request->id) << " holds blocks";
  }
}

}  // namespace airi
