#include "sched/waiting_queue.h"

#include <algorithm>

#include "base/check.h"

namespace airi {

WaitingQueue::WaitingQueue(std::int32_t num_bands, AgingRule aging, const TenantWeights& weights)
    : aging_(aging),
      weights_(weights),
      bands_(static_cast<std::size_t>(num_bands)),
      promotions_(ByPromotion{aging}) {}

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
  if (aging_.moves(request->band)) promotions_.push(request);
}

void WaitingQueue::dequeue(Request* request, std::int64_t service) {
  Band& band = bands_[static_cast<std::size_t>(request->band)];
  const TenantIndex tenant = request->ledger_tenant;
  TenantQueue& queue = band.queues[index(tenant)];
  queue.remove(request);
  if (request->aging_place != kOutsideHeap) promotions_.remove(request);
  if (queue.empty()) {
    band.ledger.leave(tenant);
    if (service > 0) band.ledger.charge(tenant, service);
  } else {
    band.ledger.advance(tenant, {queue.top()->arrival, queue.top()->id}, service);
  }
}

void WaitingQueue::push(Request* request, TimePoint since) {
  request->phase = Phase::kWaiting;
  request->waiting_since = since;
  request->band = aging_.band(request->first_band, request->waited);
  enqueue(request);
  ++size_;
}

void WaitingQueue::promote(TimePoint now) {
  while (!promotions_.empty()) {
    Request* request = promotions_.top();
    const Micros waited = request->waited + (now - request->waiting_since);
    const std::int32_t band = aging_.band(request->first_band, waited);
    if (band >= request->band) return;
    dequeue(request, 0);
    request->band = band;
    enqueue(request);
  }
}

Request* WaitingQueue::head() const {
  for (const Band& band : bands_) {
    const auto tenant = band.ledger.next();
    if (tenant) return band.queues[index(*tenant)].top();
  }
  return nullptr;
}

void WaitingQueue::dispatch(Request* request, std::int64_t service, TimePoint now) {
  // Running work is noted first: the ledger must not take the tenant for idle.
  bands_[static_cast<std::size_t>(request->band)].ledger.begin_work(request->ledger_tenant);
  dequeue(request, service);
  --size_;
  request->waited += std::max<Micros>(now - request->waiting_since, 0);
}

void WaitingQueue::remove(Request* request) {
  dequeue(request, 0);
  --size_;
}

void WaitingQueue::end_work(Request* request) {
  bands_[static_cast<std::size_t>(request->band)].ledger.end_work(request->ledger_tenant);
}

void WaitingQueue::reweigh(TenantId tenant) {
  for (Band& band : bands_) band.ledger.set_weight(tenant, weights_.of(tenant));
}

void WaitingQueue::check_invariants() const {
  std::size_t queued = 0;
  promotions_.check_invariants();
  for (const Band& band : bands_) {
    band.ledger.check_invariants();
    std::size_t backlogged = 0;
    for (const TenantQueue& queue : band.queues) {
      queue.check_invariants();
      queued += queue.size();
      backlogged += queue.empty() ? 0 : 1;
      for (const Request* request : queue.items()) {
        AIRI_CHECK(&bands_[static_cast<std::size_t>(request->band)] == &band)
            << "request " << raw(request->id) << " queued outside its band";
      }
    }
    AIRI_CHECK(backlogged == band.ledger.num_backlogged()) << "backlog and queues disagree";
  }
  AIRI_CHECK(queued == size_) << "queues hold " << queued << ", counted " << size_;
}

}  // namespace airi
