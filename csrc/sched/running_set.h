#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sched/request.h"

namespace airi {

// The running requests of one model: who decodes, who prefills, who has which slot. Those that wait in a slot
// for their blocks to be loaded stand in neither list. Decides nothing; knows neither blocks nor tenants.
//
// Requests that leave stay in the lists, in another phase, until sweep(): so that a caller may let them go
// while it walks a list.
//
// Thread safety: none.
// Invariant: after sweep(), decodes() are those that have computed their prompt, in order of admission;
// prefills() are the others, by band, then in order of admission; slots are distinct.
class RunningSet {
 public:
  RunningSet(std::int32_t num_slots, std::int32_t num_bands);

  [[nodiscard]] const std::vector<Request*>& decodes() const noexcept { return decodes_; }
  [[nodiscard]] const std::vector<Request*>& prefills() const noexcept { return prefills_; }
  // Of decodes(), those that have computed their prompt only once the latest planned step has run.
  [[nodiscard]] std::span<Request* const> newest_decodes() const noexcept {
    return std::span(decodes_).last(std::min(num_newest_, decodes_.size()));
  }
  [[nodiscard]] std::size_t size() const noexcept { return num_slots_ - free_slots_.size(); }
  [[nodiscard]] bool empty() const noexcept { return size() == 0; }
  [[nodiscard]] bool is_full() const noexcept { return free_slots_.empty(); }
  [[nodiscard]] std::size_t num_slots() const noexcept { return num_slots_; }

  // Prefills that stand before one of `band`.
  [[nodiscard]] std::ptrdiff_t num_prefills_ahead(std::int32_t band) const;
  // True iff something of a larger band than `band` runs.
  [[nodiscard]] bool runs_behind(std::int32_t band) const;

  // Starts a request as a prefill in a free slot. REQUIRES: !is_full().
  void enter(Request* request);
  // As enter, but it has nothing to compute yet. begin_prefill() then makes a prefill of it.
  void enter_loading(Request* request);
  void begin_prefill(Request* request);
  // The decodes that there are have computed their prompt.
  void age_decodes() noexcept { num_newest_ = 0; }
  // Moves a prefill to the decodes at the next sweep().
  void begin_decoding(Request* request);
  // Frees the slot of a running request, which goes on in `phase`.
  void leave(Request* request, Phase phase);
  // Takes out of the lists what has left them.
  void sweep();

  // Calls visit(request) for what runs now and is not loading, decodes first.
  template <class Visit>
  void for_each(Visit visit) const {
    for (Request* r : decodes_) {
      if (r->phase == Phase::kDecode) visit(r);
    }
    for (Request* r : prefills_) {
      if (r->phase == Phase::kPrefill) visit(r);
    }
  }

  // Throws InvariantError naming the first broken invariant. REQUIRES: sweep() was called.
  void check_invariants() const;

 private:
  std::size_t num_slots_;
  std::vector<Request*> decodes_;
  std::vector<Request*> prefills_;
  std::vector<SlotId> free_slots_;  // last in, first out
  std::vector<std::int32_t> in_band_;
  std::size_t num_loading_ = 0;
  std::size_t num_newest_ = 0;  // may count some that have left
  bool needs_sweep_ = false;
};

}  // namespace airi
