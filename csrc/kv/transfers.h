#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <unordered_map>

#include "base/ids.h"
#include "base/time.h"
#include "kv/memory_op.h"
#include "kv/tier_slots.h"

namespace airi {

enum class TransferEnd : std::uint8_t {
  kDone,
  kFailed,     // an error, a short read, a wrong checksum
  kCancelled,  // never begun
};

// Whose transfer it is and where it goes.
struct Transfer {
  TransferId id{};  // as begin() returned it
  MemoryOpKind kind{};
  ModelId model{};
  std::int64_t bytes = 0;
  std::optional<TierSlot> host;
  std::optional<TierSlot> disk;
  std::optional<BlockId> block;  // on the device
  std::uint64_t owner = 0;       // of a load: the serial of the request it is for
};

// The transfers that have begun and not ended, and what kinds of them have cost lately. Never moves a byte.
//
// Thread safety: none.
// Invariant: ids are never used twice; queued bytes per kind are the sum over pending transfers.
class Transfers {
 public:
  using Rates = std::array<double, kNumMemoryOpKinds>;  // bytes per microsecond by kind; 0: never arrives

  // `start`: the rates to begin with, and to drift back to while a kind is not used.
  explicit Transfers(const Rates& start) : start_(start), rates_(start) {}

  TransferId begin(const Transfer& transfer);

  // The transfer has ended after `micros` of its own; learns from one that went well. Nothing for an id that
  // is not pending: reported twice, or never begun.
  std::optional<Transfer> end(TransferId id, TransferEnd how, Micros micros);

  // Microseconds until `count` transfers of `bytes` each, begun now, have ended: after all pending ones of
  // this kind. Infinite where they never arrive.
  [[nodiscard]] double estimate(MemoryOpKind kind, std::int64_t count, std::int64_t bytes) const noexcept;

  // The kind was too slow to be used: what it has cost counts a little less, so that one bad time does not
  // keep it from being tried for ever.
  void forget_some(MemoryOpKind kind) noexcept;

  [[nodiscard]] std::size_t num_pending() const noexcept { return pending_.size(); }
  [[nodiscard]] std::int64_t num_pending(MemoryOpKind kind) const noexcept {
    return queues_[index(kind)].count;
  }
  // True iff a request, or the blocks of one that is gone, may wait for a transfer.
  [[nodiscard]] bool is_waited_for() const noexcept {
    return num_pending(MemoryOpKind::kLoad) + num_pending(MemoryOpKind::kFetch) > 0;
  }
  [[nodiscard]] const std::unordered_map<TransferId, Transfer>& pending() const noexcept { return pending_; }

 private:
  struct Queue {
    std::int64_t count = 0;
    std::int64_t bytes = 0;
  };

  Rates start_;
  Rates rates_;
  std::array<Queue, kNumMemoryOpKinds> queues_{};
  std::unordered_map<TransferId, Transfer> pending_;
  std::int64_t last_id_ = 0;
};

}  // namespace airi
