#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace airi {

enum class TransferId : std::int64_t {};

// What the runner does to memory before a step's batch. `from` and `to` count granules of the places named.
enum class MemoryOpKind : std::uint8_t {
  kZero,   // `from` in the device arena becomes zero; `to` is unused, and nobody waits for it
  kStore,  // device to host
  kLoad,   // host to device
  kSpill,  // host to disk
  kFetch,  // disk to host
};
inline constexpr std::size_t kNumMemoryOpKinds = 5;

// One row of StepBuffers::ops.
struct MemoryOp {
  MemoryOpKind kind{};
  TransferId id{-1};  // of the transfer that the runner reports; -1 for kZero
  std::int64_t from = 0;
  std::int64_t to = 0;
  std::int64_t granules = 0;
  friend bool operator==(const MemoryOp&, const MemoryOp&) = default;
};

// The memory operations of the step being planned, in the order in which they are executed, and those that
// wait for a step with room. Decides nothing about them.
//
// Thread safety: none.
// Invariant: a step never has more operations than its capacity; what waits keeps its order.
class MemoryOps {
 public:
  // From here on operations go to a step that holds `capacity` of them. What waits comes first.
  void begin_step(std::int32_t capacity);
  // The step has been handed out, and what is added from here on goes to the next.
  void end_step() noexcept { step_.clear(); }

  [[nodiscard]] std::int32_t room() const noexcept {
    return capacity_ - set_aside_ - static_cast<std::int32_t>(step_.size());
  }
  // Keeps that many places of this step free of what is added, until told otherwise.
  void set_aside(std::int32_t places) noexcept { set_aside_ = places; }
  // Adds to this step, or not at all.
  [[nodiscard]] bool try_add(const MemoryOp& op);
  // Adds to this step, or to the first later one that has room.
  void add(const MemoryOp& op);
  // Takes back what has been in no step. False where it has.
  bool cancel(TransferId id);
  // Takes back what is in no step that was handed out and reads or writes these granules of the device, to
  // which others will write. Returns the transfers among it.
  std::vector<TransferId> take_back(std::int64_t first, std::int64_t count);

  // Of this step, in order.
  [[nodiscard]] std::span<const MemoryOp> step() const noexcept { return step_; }
  [[nodiscard]] std::size_t num_waiting() const noexcept { return waiting_.size(); }

 private:
  std::int32_t capacity_ = 0;
  std::int32_t set_aside_ = 0;
  std::vector<MemoryOp> step_;
  std::deque<MemoryOp> waiting_;
};

}  // namespace airi
