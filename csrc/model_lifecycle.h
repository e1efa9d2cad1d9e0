#pragma once

#include <cstdint>

namespace airi {

// Where a model stands. Whoever holds its weights acts in the two states that move them.
//
//   kAwake       its requests run
//   kDraining    told to sleep: nothing of it is planned, steps that were planned are on the device
//   kMovingOut   the caller copies the weights away, then confirms
//   kAsleep      its slabs are lent; its requests wait
//   kReclaiming  told to wake: its home slabs are its own again, steps on the device may still use them
//   kMovingIn    the caller copies the weights back, then confirms; where it cannot, it tells it to sleep
//   kRemoving    its last requests end
//   kRemoved     it owns nothing; its id is not given again
enum class ModelState : std::uint8_t {
  kAwake,
  kDraining,
  kMovingOut,
  kAsleep,
  kReclaiming,
  kMovingIn,
  kRemoving,
  kRemoved,
};

[[nodiscard]] const char* name_of(ModelState state) noexcept;

enum class ModelEvent : std::uint8_t {
  kSleep,
  kWake,
  kRemove,
  kQuiet,  // no step that was planned before the latest change is on the device
  kMoved,  // the caller has copied the weights
};

// The state after `event`, or the same one where it means nothing there: only kQuiet may come at any time.
// Throws InvalidArgument, naming the state and the states that accept it, for any other.
[[nodiscard]] ModelState next_state(ModelState state, ModelEvent event);

}  // namespace airi
