#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "base/time.h"
#include "kv/tier_cache.h"
#include "sched/block_tables.h"
#include "sched/load_split.h"
#include "sched/running_set.h"
#include "sched/step_time.h"
#include "sched/step_writer.h"

namespace airi {

// Loads what the tiers have of the prefixes of one model's requests, where that is expected to take less time
// than computing it. A request whose blocks are being loaded holds its slot and its blocks and computes
// nothing; what fails, or does not come in time, it computes.
//
// A device block that a transfer writes is held by the transfer too: whatever becomes of the request, nobody
// else gets the block before the transfer has ended.
//
// Thread safety: none.
// Invariant: a request is in phase kLoading iff it has a load here.
class PrefixLoader {
 public:
  struct Options {
    std::int32_t chunk = 0;      // tokens of one request that a step computes
    Micros timeout = 1'000'000;  // of one load; and of what is fetched for a request that waits
  };

  // The references must outlive the loader.
  PrefixLoader(const Options& options, BlockTables& tables, RunningSet& running,
               const StepTimeModel& step_time);

  // Those of the blocks that follow what the request hits that are worth loading. Valid until the next call.
  [[nodiscard]] std::span<const BlockPool::Known> worth_loading(const Request& request,
                                                                const PrefixMatch& match);

  // Begins to load these for a request in phase kLoading, which has just been given what it hits. Takes their
  // blocks and writes their deltas.
  void begin(Request& request, std::span<const BlockPool::Known> blocks, TimePoint now, StepWriter& out);

  // Begins to bring what the disk has for a waiting request to the host.
  void prefetch(Request& request, TimePoint now);

  // A transfer of this model has ended.
  void complete(const Transfer& transfer, TransferEnd end);

  // Asks for what can be read now. Calls one of both with each request whose load has ended, and with how
  // many of its blocks did not come: `finished` where it is a prefill now, to be published as far as
  // computed; `gave_up` where it has waited long enough while a transfer still writes its blocks, so that it
  // must be stopped.
  template <class Finished, class GaveUp>
  void advance(TimePoint now, Finished finished, GaveUp gave_up) {
    expire_prefetches(now);
    for (std::size_t i = 0; i < loads_.size();) {
      if (goes_on(loads_[i], now)) {
        ++i;
        continue;
      }
      Load load = std::move(loads_[i]);
      loads_.erase(loads_.begin() + static_cast<std::ptrdiff_t>(i));
      if (num_in_state(load, PartState::kLoading) > 0) {
        gave_up(load.request, static_cast<std::int32_t>(load.parts.size()));
      } else {
        finished(load.request, settle(load));
      }
    }
  }

  // The request ends, or stops, whatever its load does. REQUIRES: it is in phase kLoading.
  void abandon(const Request& request);

  // The request that began to load first, or null.
  [[nodiscard]] Request* oldest() const noexcept { return loads_.empty() ? nullptr : loads_.front().request; }
  // Calls visit(request) for each that is loading.
  template <class Visit>
  void for_each(Visit visit) const {
    for (const Load& load : loads_) visit(load.request);
  }

 private:
  enum class PartState : std::uint8_t { kWaiting, kLoading, kDone, kFailed };
  struct Part {
    BlockPool::Known known;
    PartState state = PartState::kWaiting;
    TransferId transfer{};
  };
  struct Load {
    Request* request = nullptr;
    std::int32_t first_block = 0;
    TimePoint deadline{};
    std::vector<Part> parts;
  };

  [[nodiscard]] static std::int32_t num_in_state(const Load& load, PartState state) noexcept;
  [[nodiscard]] static bool has_ended(const Load& load) noexcept;
  [[nodiscard]] bool goes_on(Load& load, TimePoint now);
  [[nodiscard]] double load_micros(std::int32_t blocks) const noexcept;
  void ask(Load& load);
  void ask_for(Load& load, std::int32_t part);
  void cancel_what_waits(Load& load);
  std::int32_t settle(Load& load);
  void expire_prefetches(TimePoint now);

  Options options_;
  BlockTables& tables_;
  RunningSet& running_;
  const StepTimeModel& step_time_;
  std::vector<Load> loads_;
  std::deque<std::pair<TransferId, TimePoint>> prefetches_;
  PrefixMatch match_;                  // scratch
  std::vector<std::int32_t> on_disk_;  // scratch: of the first i loadable blocks
  std::vector<TierPin> pins_;          // scratch
};

}  // namespace airi
