#pragma once

#include <algorithm>
#include <optional>

#include "base/time.h"

namespace airi {

// What a class of requests is promised. Nothing: no promise.
struct SloTarget {
  std::optional<Micros> ttft;  // from arrival to the first token
  std::optional<Micros> itl;   // from one token to the next
};

// When the token after one that was emitted at `emitted` is due, where that one was due at `due`: one target
// later, and as much more as it came early, of which a stream saves at most `most_saved`.
[[nodiscard]] constexpr TimePoint next_token_due(TimePoint due, TimePoint emitted, Micros itl,
                                                 Micros most_saved) noexcept {
  return emitted + itl + std::clamp<Micros>(due - emitted, 0, most_saved);
}

}  // namespace airi
