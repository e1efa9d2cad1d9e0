#pragma once

#include <algorithm>
#include <cstdint>

#include "sched/request.h"

namespace airi {

enum class AdmissionPolicy : std::uint8_t {
  kNoEvict,  // promise all blocks to completion: never a preemption for want of memory
  kMaxUtil,  // promise the known tokens' blocks, above a watermark; preempt when memory runs out
};

// The promises made on a block pool: which of its available blocks are spoken for, and whether one
// more request may come in. Counts blocks; never takes any.
//
// Thread safety: none.
// Invariant: outstanding() is the sum of promised() over running requests and never exceeds the
// available blocks; so a prefill never waits for blocks.
class AdmissionControl {
 public:
  // `watermark` is the share of `capacity` that kMaxUtil leaves free at admissions.
  // Throws InvalidArgument unless it lies in [0, 1).
  AdmissionControl(AdmissionPolicy policy, std::int32_t capacity, std::int32_t block_size, double watermark,
                   std::int32_t max_preemptions);

  // What a request needs to be admitted, given what it hits.
  struct Demand {
    std::int32_t blocks = 0;    // of the available ones, hits that are CACHED included
    std::int32_t reserved = 0;  // to promise to it in all, hits included
    bool may_grow = false;      // it may ask for more later: the watermark applies
  };

  // `num_hits` leading blocks are hits, `num_hits_cached` of them held by nobody.
  [[nodiscard]] Demand demand(const Request& request, std::int32_t num_hits,
                              std::int32_t num_hits_cached) const noexcept;

  // True iff `demand` can be met from `available` blocks. The watermark is waived for a model
  // on which nothing runs: its head always fits.
  [[nodiscard]] bool fits(const Demand& demand, std::int32_t available, bool nothing_runs) const noexcept {
    return shortage(demand, available, nothing_runs) <= 0;
  }

  // How many more available blocks it would take for `demand` to fit.
  [[nodiscard]] std::int32_t shortage(const Demand& demand, std::int32_t available,
                                      bool nothing_runs) const noexcept;

  // True iff the request may take one more of `available` blocks.
  [[nodiscard]] bool can_grow(const Request& request, std::int32_t available) const noexcept {
    return promised(request) > 0 || available > outstanding_;
  }

  // The blocks promised to a running request that it has not taken yet.
  [[nodiscard]] static std::int32_t promised(const Request& request) noexcept {
    return std::max(request.reserved_blocks - static_cast<std::int32_t>(request.block_table.size()), 0);
  }

  // Bookkeeping. admit: the request holds its hits and nothing else. grow: it is about to take
  // `count` more blocks. release: it is about to give up all.
  void admit(Request& request, const Demand& demand) noexcept;
  void grow(const Request& request, std::int32_t count) noexcept;
  void release(Request& request) noexcept;

  [[nodiscard]] bool reserves_to_completion() const noexcept { return policy_ == AdmissionPolicy::kNoEvict; }
  [[nodiscard]] std::int32_t outstanding() const noexcept { return outstanding_; }

  // A request that was preempted this often is readmitted with its full reservation only, and is
  // preempted neither for memory nor for an urgent request again.
  [[nodiscard]] bool is_pinned(const Request& request) const noexcept {
    return request.num_preemptions >= max_preemptions_;
  }

 private:
  AdmissionPolicy policy_;
  std::int32_t block_size_;
  std::int32_t watermark_blocks_;
  std::int32_t max_preemptions_;
  std::int32_t outstanding_ = 0;
};

}  // namespace airi
