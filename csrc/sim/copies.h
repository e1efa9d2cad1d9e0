#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "base/time.h"
#include "kv/memory_op.h"
#include "runtime_config.h"
#include "sched/inbox.h"

namespace airi {

// Copies of blocks between device, host and disk under virtual time: of one kind one after the other, kinds
// beside each other and beside steps, at the speed that the core is told of. Copies nothing, and none fails.
//
// Thread safety: none.
// Invariant: of one kind, who began earlier ends no later.
class Copies {
 public:
  // Operations of one step at most, as in the engine.
  static constexpr std::size_t kMaxOps = 4096;

  explicit Copies(const TierConfig& tiers)
      : host_bytes_per_us_(tiers.host_bytes_per_us), disk_bytes_per_us_(tiers.disk_bytes_per_us) {}

  // Begins rows of StepBuffers::ops at a moment no earlier than of the call before. What the host exchanges
  // with the device is reported together, when the last of the call has ended; a copy on the disk by itself,
  // as the engine does it.
  void begin(std::span<const std::int64_t> ops, TimePoint start);

  // When the next report is due. Nothing where none is.
  [[nodiscard]] std::optional<TimePoint> next_report() const noexcept;
  // What is due by `now`, in order of time. Valid until the next call.
  [[nodiscard]] std::span<const Inbox::TransferReport> take_due(TimePoint now);

 private:
  struct Running {
    Inbox::TransferReport report;
    TimePoint due{};
  };
  // Copies of one kind.
  struct Queue {
    std::deque<Running> running;
    double free_us = 0;  // when the last one ends
  };

  [[nodiscard]] static std::size_t index(MemoryOpKind kind) noexcept {
    return static_cast<std::size_t>(kind);
  }
  [[nodiscard]] const Queue* next_queue() const noexcept;
  void begin(MemoryOpKind kind, TransferId id, std::int64_t granules, TimePoint start);

  // Immutable after construction. 0: never arrives.
  double host_bytes_per_us_;
  double disk_bytes_per_us_;

  std::array<Queue, kNumMemoryOpKinds> queues_;
  std::vector<Inbox::TransferReport> due_;  // scratch
};

}  // namespace airi
