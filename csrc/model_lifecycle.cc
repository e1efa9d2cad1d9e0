#include "model_lifecycle.h"

#include <array>
#include <string>

#include "base/check.h"

namespace airi {
namespace {

struct Transition {
  ModelEvent event;
  ModelState from;
  ModelState to;
};

constexpr std::array kTransitions{
    Transition{ModelEvent::kSleep, ModelState::kAwake, ModelState::kDraining},
    Transition{ModelEvent::kSleep, ModelState::kMovingIn, ModelState::kDraining},
    Transition{ModelEvent::kQuiet, ModelState::kDraining, ModelState::kMovingOut},
    Transition{ModelEvent::kMoved, ModelState::kMovingOut, ModelState::kAsleep},
    Transition{ModelEvent::kWake, ModelState::kAsleep, ModelState::kReclaiming},
    Transition{ModelEvent::kQuiet, ModelState::kReclaiming, ModelState::kMovingIn},
    Transition{ModelEvent::kMoved, ModelState::kMovingIn, ModelState::kAwake},
    Transition{ModelEvent::kRemove, ModelState::kAwake, ModelState::kRemoving},
    Transition{ModelEvent::kRemove, ModelState::kAsleep, ModelState::kRemoving},
    Transition{ModelEvent::kQuiet, ModelState::kRemoving, ModelState::kRemoved},
};

constexpr std::array kNames{"awake",      "draining",  "moving out", "asleep",
                            "reclaiming", "moving in", "removing",   "removed"};
constexpr std::array kEvents{"sleep", "wake", "be removed", "become quiet", "have its weights moved"};

}  // namespace

const char* name_of(ModelState state) noexcept { return kNames[static_cast<std::size_t>(state)]; }

ModelState next_state(ModelState state, ModelEvent event) {
  for (const Transition& t : kTransitions) {
    if (t.event == event && t.from == state) return t.to;
  }
  if (event == ModelEvent::kQuiet) return state;
  std::string accepted;
  for (const Transition& t : kTransitions) {
    if (t.event == event) accepted += (accepted.empty() ? "" : " or ") + std::string(name_of(t.from));
  }
  throw InvalidArgument("a model must be " + accepted + " to " + kEvents[static_cast<std::size_t>(event)] +
                        ", got " + name_of(state));
}

}  // namespace airi
