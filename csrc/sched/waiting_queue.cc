#include "sched/waiting_queue.h"

#include <algorithm>
#include <ranges>

#include "base/check.h"

namespace airi {

WaitingQueue::WaitingQueue(std::int32_t num_bands, AgingRule aging, const TenantWeights& weights,
                           std::optional<Locality> locality)
    : locality_(locality),
      aging_(aging),
      weights_(weights),
      bands_(static_cast<std::size_t>(num_bands)),
      promotions_(ByPromotion{aging}) {
  if (!locality_) return;
  const std::int64_t quantum = locality_->quantum_tokens * TenantWeight::kOne;
  for (Band& band : bands_) band.order = std::make_unique<PrefixOrder>(band.ledger, quantum);
}

// The last token is always computed.
std::int32_t WaitingQueue::most_to_match(const Request& request) const noexcept {
  return request.compute_all ? 0 : (request.length() - 1) / locality_->block_size;
}

// Has the request told when a block comes that would make it match one more.
void WaitingQueue::watch(Request* request) {
  const auto hashed = static_cast<std::int32_t>(request->hashes.size());
  if (request->num_matched < std::min(most_to_match(*request), hashed)) watched_.watch(request);
}

void WaitingQueue::rematch(Request* request, std::int32_t num_matched) {
  if (num_matched == request->num_matched) {
    if (!request->is_watched) watch(request);
    return;
  }
  if (request->is_watched) watched_.unwatch(request);
  request->num_matched = num_matched;
  watch(request);
  bands_[static_cast<std::size_t>(request->band)].order->rematched(request);
}

void WaitingQueue::note_published(const Request& publisher, std::int32_t first) {
  if (watched_.empty()) return;
  left_to_catch_up_ = kMostCaughtUp;
  for (std::int32_t i = first; i < publisher.num_published; ++i) {
    watched_.note_published(publisher.hashes[static_cast<std::size_t>(i)]);
  }
}

void WaitingQueue::enqueue(Request* request) {
  Band& band = bands_[static_cast<std::size_t>(request->band)];
  const HeadKey own{request->arrival, request->id};
  const auto known = band.ledger.find(request->tenant);
  if (!known || index(*known) >= band.queues.size() || band.queues[index(*known)].empty()) {
    request->ledger_tenant = band.ledger.enter(request->tenant, weights_.of(request->tenant), own);
    if (index(request->ledger_tenant) >= band.queues.size()) {
      band.queues.resize(index(request->ledger_tenant) + 1);
    }
    band.queues[index(request->ledger_tenant)].push(request);
  } else {
    request->ledger_tenant = *known;
    TenantQueue& queue = band.queues[index(*known)];
    queue.push(request);
    if (queue.top() == request) band.ledger.set_head(*known, own);
  }
  if (band.order) band.order->add(request, band.queues[index(request->ledger_tenant)].top());
  if (aging_.moves(request->band) || is_best_effort(request)) promotions_.push(request);
}

void WaitingQueue::dequeue(Request* request, std::int64_t service) {
  Band& band = bands_[static_cast<std::size_t>(request->band)];
  const TenantIndex tenant = request->ledger_tenant;
  TenantQueue& queue = band.queues[index(tenant)];
  queue.remove(request);
  if (request->aging_place != kOutsideHeap) promotions_.remove(request);
  if (queue.empty()) {
    if (band.order) band.order->remove(request, nullptr);
    band.ledger.leave(tenant);
    if (service > 0) band.ledger.charge(tenant, service);
  } else {
    band.ledger.advance(tenant, {queue.top()->arrival, queue.top()->id}, service);
    if (band.order) band.order->remove(request, queue.top());
  }
  if (!band.order) return;
  // Of many tenants none is in the caches: who comes next, and what that uncovers, is fetched ahead.
  const auto next = band.order->prepare_first();
  if (!next) return;
  for (const Request* r : band.queues[index(*next)].items() | std::views::take(2)) __builtin_prefetch(r);
}

void WaitingQueue::push(Request* request, TimePoint since) {
  request->phase = Phase::kWaiting;
  request->waiting_since = since;
  request->band = aging_.band(request->first_band, request->waited);
  if (request->was_best_effort && since < request->best_effort_until) {
    request->band = static_cast<std::int32_t>(bands_.size()) - 1;
  }
  if (locality_) {
    request->num_matched = most_to_match(*request);
    request->match_version = 0;
  }
  enqueue(request);
  count(request, 1);
}

void WaitingQueue::count(const Request* request, std::int64_t sign) noexcept {
  size_ = sign > 0 ? size_ + 1 : size_ - 1;
  num_tokens_ += sign * request->length();
  num_tokens_at_most_ += sign * request->max_length;
}

void WaitingQueue::make_best_effort(Request* request, TimePoint until) {
  dequeue(request, 0);
  request->was_best_effort = true;
  request->best_effort_until = until;
  request->band = static_cast<std::int32_t>(bands_.size()) - 1;
  enqueue(request);
}

void WaitingQueue::promote(TimePoint now) {
  while (!promotions_.empty()) {
    Request* request = promotions_.top();
    const Micros waited = request->waited + (now - request->waiting_since);
    const std::int32_t band = aging_.band(request->first_band, waited);
    if (is_best_effort(request) ? now < request->best_effort_until : band >= request->band) return;
    dequeue(request, 0);
    request->band = band;
    enqueue(request);
  }
}

void WaitingQueue::dispatch(Request* request, std::int64_t service, TimePoint now) {
  // Running work is noted first: the ledger must not take the tenant for idle.
  bands_[static_cast<std::size_t>(request->band)].ledger.begin_work(request->ledger_tenant);
  if (request->is_watched) watched_.unwatch(request);
  dequeue(request, service);
  count(request, -1);
  request->waited += std::max<Micros>(now - request->waiting_since, 0);
}

void WaitingQueue::remove(Request* request) {
  if (request->is_watched) watched_.unwatch(request);
  dequeue(request, 0);
  count(request, -1);
}

void WaitingQueue::end_work(Request* request) {
  bands_[static_cast<std::size_t>(request->band)].ledger.end_work(request->ledger_tenant);
}

void WaitingQueue::reweigh(TenantId tenant) {
  for (Band& band : bands_) band.ledger.set_weight(tenant, weights_.of(tenant));
}

void WaitingQueue::check_invariants() const {
  std::size_t queued = 0;
  std::int64_t tokens = 0;
  promotions_.check_invariants();
  watched_.check_invariants();
  for (const Band& band : bands_) {
    band.ledger.check_invariants();
    if (band.order) band.order->check_invariants();
    std::size_t backlogged = 0;
    for (const TenantQueue& queue : band.queues) {
      queue.check_invariants();
      queued += queue.size();
      backlogged += queue.empty() ? 0 : 1;
      for (const Request* request : queue.items()) {
        tokens += request->length();
        AIRI_CHECK(&bands_[static_cast<std::size_t>(request->band)] == &band)
            << "request " << raw(request->id) << " queued outside its band";
      }
    }
    AIRI_CHECK(backlogged == band.ledger.num_backlogged()) << "backlog and queues disagree";
  }
  AIRI_CHECK(tokens == num_tokens_) << "queued requests have " << tokens << " tokens, counted "
                                    << num_tokens_;
  AIRI_CHECK(queued == size_) << "queues hold " << queued << ", counted " << size_;
}

}  // namespace airi
