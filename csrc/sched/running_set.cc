#include "sched/running_set.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace airi {

RunningSet::RunningSet(std::int32_t num_slots, std::int32_t num_bands)
    : num_slots_(static_cast<std::size_t>(num_slots)), in_band_(static_cast<std::size_t>(num_bands)) {
  // A list may hold requests that have left and others that took their slots.
  for (auto* requests : {&decodes_, &prefills_}) requests->reserve(2 * num_slots_);
  for (std::int32_t i = num_slots; i-- > 0;) free_slots_.push_back(SlotId{i});
}

std::ptrdiff_t RunningSet::num_prefills_ahead(std::int32_t band) const {
  const auto behind = [=](const Request* other) { return other->band > band; };
  return std::ranges::find_if(prefills_, behind) - prefills_.begin();
}

bool RunningSet::runs_behind(std::int32_t band) const {
  return std::any_of(in_band_.begin() + band + 1, in_band_.end(), [](std::int32_t n) { return n > 0; });
}

void RunningSet::enter(Request* request) {
  enter_loading(request);
  request->was_loading = false;
  begin_prefill(request);
}

void RunningSet::enter_loading(Request* request) {
  AIRI_DCHECK(!free_slots_.empty()) << "no slot for request " << raw(request->id);
  request->slot = free_slots_.back();
  free_slots_.pop_back();
  request->phase = Phase::kLoading;
  request->first_step = request->was_loading = true;
  ++in_band_[static_cast<std::size_t>(request->band)];
  ++num_loading_;
}

void RunningSet::begin_prefill(Request* request) {
  request->phase = Phase::kPrefill;
  --num_loading_;
  prefills_.insert(prefills_.begin() + num_prefills_ahead(request->band), request);
}

void RunningSet::begin_decoding(Request* request) {
  request->phase = Phase::kDecode;
  decodes_.push_back(request);
  ++num_newest_;
  needs_sweep_ = true;
}

void RunningSet::leave(Request* request, Phase phase) {
  free_slots_.push_back(request->slot);
  if (request->phase == Phase::kLoading) --num_loading_;
  --in_band_[static_cast<std::size_t>(request->band)];
  request->phase = phase;
  needs_sweep_ = true;
}

void RunningSet::sweep() {
  if (!needs_sweep_) return;
  needs_sweep_ = false;
  std::erase_if(decodes_, [](const Request* r) { return r->phase != Phase::kDecode; });
  std::erase_if(prefills_, [](const Request* r) { return r->phase != Phase::kPrefill; });
}

void RunningSet::check_invariants() const {
  std::vector<char> used(num_slots_, 0);
  for (const auto* running : {&decodes_, &prefills_}) {
    const Phase phase = running == &decodes_ ? Phase::kDecode : Phase::kPrefill;
    for (const Request* r : *running) {
      AIRI_CHECK(r->phase == phase) << "request " << raw(r->id) << " is in the wrong list";
      AIRI_CHECK(!std::exchange(used[index(r->slot)], 1)) << "slot " << raw(r->slot) << " is shared";
      AIRI_CHECK(!r->first_step || r->was_loading)
          << "request " << raw(r->id) << " was admitted to a step and not planned";
    }
  }
  AIRI_CHECK(free_slots_.size() + decodes_.size() + prefills_.size() + num_loading_ == num_slots_)
      << "slots leak";
}

}  // namespace airi
