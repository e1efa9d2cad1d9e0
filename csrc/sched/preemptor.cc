#include "sched/preemptor.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace airi {
namespace {

bool contains(const std::vector<TenantId>& tenants, TenantId tenant) {
  return std::ranges::find(tenants, tenant) != tenants.end();
}

}  // namespace

Preemptor::Preemptor(std::optional<std::int64_t> fairness_gap_tokens, std::int32_t num_bands,
                     BlockTables& tables, WaitingQueue& queue, RunningSet& running, Swapper& swapper,
                     DecisionLog& log)
    : fairness_gap_tokens_(fairness_gap_tokens),
      num_bands_(num_bands),
      tables_(tables),
      queue_(queue),
      running_(running),
      swapper_(swapper),
      log_(log),
      band_limit_(num_bands) {
  for (auto* tenants : {&served_, &overserved_}) tenants->reserve(running.num_slots());
  leaving_.reserve(running.num_slots());
}

void Preemptor::begin_step() {
  band_limit_ = num_bands_;
  served_.clear();
  overserved_.clear();
}

bool Preemptor::is_barred(const Request* head) const {
  return head->band >= band_limit_ || contains(overserved_, head->tenant);
}

// Aging moves a request past others in the queue but never costs a request of its own class, which
// merely started earlier, its place: both the present bands and the classes must differ.
bool Preemptor::makes_way(const Request* running, const Request* head) const {
  return running->band > head->band && running->first_band > head->first_band &&
         !tables_.admission().is_pinned(*running);
}

// What a running tenant may have been served at most without leading the head's by more than the gap.
std::int64_t Preemptor::most_served(const Request* head) const {
  return queue_.counter(head) + *fairness_gap_tokens_ * TenantWeight::kOne;
}

// True iff the running request's tenant has been served more than `most`. Leads are comparable within a band:
// each has a ledger of its own. Being pinned does not help: the lead would grow. What this step admitted, and
// has charged for its prompt, is not driven out by it.
bool Preemptor::is_overserved(const Request* running, std::int32_t band, std::int64_t most) const {
  return running->band == band && queue_.counter(running) > most && !contains(served_, running->tenant);
}

bool Preemptor::is_ahead_of_running(const Request* head) const {
  if (running_.runs_behind(head->band)) return true;
  if (!fairness_gap_tokens_) return false;
  const std::int64_t most = most_served(head);
  bool found = false;
  running_.for_each([&](const Request* r) { found = found || is_overserved(r, head->band, most); });
  return found;
}

bool Preemptor::can_make_way_for(Request* head) {
  leaving_.clear();
  running_.for_each([&](Request* r) {
    if (makes_way(r, head)) leaving_.push_back(r);
  });
  if (leaving_.empty()) return false;
  return tables_.would_fit(*head, leaving_, leaving_.size() == running_.size());
}

VictimKey Preemptor::victim_key(const Request* request) const {
  const std::int32_t kept = request->num_published * tables_.block_size();
  return {.band = request->band,
          .counter = queue_.counter(request),
          .lost_tokens = std::max(request->num_computed - kept, 0),
          .freed_blocks = tables_.gain_of_release(*request),
          .arrival = request->arrival,
          .id = request->id};
}

template <class Eligible>
Request* Preemptor::choose(Eligible eligible) const {
  Request* victim = nullptr;
  VictimKey worst;
  running_.for_each([&](Request* r) {
    if (!eligible(r)) return;
    // What comes first in the order is known at once; the rest means counting blocks.
    const auto standing = std::pair(r->band, queue_.counter(r));
    if (victim != nullptr && standing < std::pair(worst.band, worst.counter)) return;
    const VictimKey key = victim_key(r);
    if (victim != nullptr && !goes_before(key, worst)) return;
    victim = r;
    worst = key;
  });
  return victim;
}

Request* Preemptor::preempt_for_memory(const Request* needy, TimePoint now) {
  // What has its last token planned needs its blocks no more.
  Request* victim = choose([](const Request* r) { return r->is_planned_out(); });
  if (victim == nullptr) {
    victim = choose([&](const Request* r) {
      return !tables_.admission().is_pinned(*r) && tables_.may_yield_to(*r, *needy);
    });
    if (victim != nullptr) band_limit_ = std::min(band_limit_, victim->band);
  }
  if (victim != nullptr) preempt(victim, needy, Decision::kPreemptedMemory, now);
  return victim;
}

Request* Preemptor::preempt_overserved(const Request* head, TimePoint now) {
  if (!fairness_gap_tokens_) return nullptr;
  const std::int64_t most = most_served(head);
  Request* victim = choose([&](const Request* r) { return is_overserved(r, head->band, most); });
  if (victim == nullptr) return nullptr;
  overserved_.push_back(victim->tenant);
  preempt(victim, head, Decision::kPreemptedGap, now);
  return victim;
}

Request* Preemptor::preempt_less_urgent(const Request* head, TimePoint now) {
  Request* victim = choose([&](const Request* r) { return makes_way(r, head); });
  if (victim == nullptr) return nullptr;
  band_limit_ = std::min(band_limit_, victim->band);
  preempt(victim, head, Decision::kPreemptedUrgent, now);
  return victim;
}

void Preemptor::preempt(Request* request, const Request* beneficiary, Decision why, TimePoint now) {
  if (!request->is_planned_out()) {
    log_.write(*request, why, beneficiary != nullptr ? raw(beneficiary->id) : -1, request->num_computed);
    ++request->num_preemptions;
    ++num_preemptions_;
  }
  swapper_.keep(*request);
  if (request->awaits_token()) {
    stop(request, Phase::kParked);
    request->waiting_since = now;
    ++num_parked_;
    return;
  }
  forget_rows(*request);
  stop(request, Phase::kWaiting);
  queue_.end_work(request);
  queue_.push(request, now);
}

void Preemptor::vacate(SlabId slab, TimePoint now) {
  const BlockPool& pool = tables_.pool();
  const auto holds = [&](const Request* r) {
    return std::ranges::any_of(r->block_table,
                               [&](BlockId block) { return pool.shape().slab_of(raw(block)) == slab; });
  };
  running_.for_each([&](Request* r) {
    if (holds(r)) preempt(r, nullptr, Decision::kPreemptedSlab, now);
  });
  const auto lost = [&] { return pool.drains(slab) ? 0 : pool.shape().blocks_per_slab; };
  while (pool.num_available() - lost() < tables_.num_spoken_for()) {
    Request* victim = choose([](const Request*) { return true; });
    if (victim == nullptr) break;  // what is left is protected by quotas, and goes with the slab
    preempt(victim, nullptr, Decision::kPreemptedSlab, now);
  }
  running_.sweep();
}

void Preemptor::preempt_all(TimePoint now) {
  running_.for_each([&](Request* r) { preempt(r, nullptr, Decision::kPreemptedSleep, now); });
  running_.sweep();
}

void Preemptor::stop(Request* request, Phase phase) {
  tables_.release(*request);
  running_.leave(request, phase);
}

void Preemptor::unpark(Request* request, bool ended) {
  --num_parked_;
  queue_.end_work(request);
  if (ended) return;
  queue_.push(request, request->waiting_since);
}

}  // namespace airi
