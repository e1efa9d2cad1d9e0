#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kv/tier_cache.h"
#include "sched/block_tables.h"
#include "sched/request.h"
#include "sched/step_time.h"

namespace airi {

// What a request that is taken off the device will have cost once it is back where it was, in microseconds.
struct ComebackCosts {
  double recompute = 0;  // computing again what is lost
  double swap = 0;       // copying its full blocks out and in, and computing the rest
};

// The cheaper way, in which ties go to computing.
[[nodiscard]] constexpr bool swaps(const ComebackCosts& costs) noexcept {
  return costs.swap < costs.recompute;
}

// Decides whether a request of one model that is preempted keeps a copy of its blocks in host memory, and
// keeps it there until the request runs again or ends. How it comes back is then decided anew, as for any
// prefix.
//
// Lost counts what only this request holds: who is preempted for memory must expect that somebody takes it.
//
// Thread safety: none.
// Invariant: a request has pinned copies here only while it waits.
class Swapper {
 public:
  // `chunk`: tokens of one request that a step computes. The references must outlive the swapper.
  Swapper(std::int32_t chunk, BlockTables& tables, const StepTimeModel& step_time)
      : chunk_(chunk), tables_(tables), step_time_(step_time) {}

  // Of a running request, as things are now. The swap costs infinity where the host has no room for it, or
  // the step none for the operations.
  [[nodiscard]] ComebackCosts costs(const Request& request) const;

  // Stores what the request would lose, where that is the cheaper way. Call before its blocks are released.
  void keep(const Request& request);
  // The request runs again, or has ended.
  void release(const Request& request);

  [[nodiscard]] std::int64_t num_swaps() const noexcept { return num_swaps_; }
  [[nodiscard]] std::size_t num_kept() const noexcept { return pins_.size(); }

 private:
  // The first block of the table that nobody else holds.
  [[nodiscard]] std::int32_t first_lost(const Request& request) const noexcept;
  // The first block of the table with contents that are not known, or are not to be used.
  [[nodiscard]] std::int32_t first_unknown(const Request& request) const noexcept;
  // How many blocks from the first lost one on have contents that are known, and how many of them no copy in
  // the host.
  struct Extent {
    std::int32_t first = 0;
    std::int32_t full = 0;
    std::int32_t to_store = 0;
  };
  [[nodiscard]] Extent extent(const Request& request) const noexcept;

  std::int32_t chunk_;
  BlockTables& tables_;
  const StepTimeModel& step_time_;
  std::unordered_map<std::uint64_t, std::vector<TierPin>> pins_;  // by serial of the request
  std::int64_t num_swaps_ = 0;
};

}  // namespace airi
