#pragma once

#include <cstdint>
#include <vector>

#include "guard/byte_set.h"
#include "guard/pattern.h"
#include "guard/regex_ast.h"

namespace airi::guard {

enum class ThompsonId : std::int32_t {};

// A state of the textbook's automaton: bytes are read one at a time, everything else reads none.
struct ThompsonState {
  enum class Kind : std::uint8_t { kRead, kSplit, kLook, kAccept };
  Kind kind = Kind::kAccept;
  ByteSet before{};  // of a look
  ByteSet bytes{};   // what is read; of a look: what may follow
  std::vector<ThompsonId> next{};
};

// One pattern's automaton; the last state in `states` is where it begins, the first where it accepts.
struct Thompson {
  std::vector<ThompsonState> states;
  [[nodiscard]] ThompsonId start() const { return ThompsonId{static_cast<std::int32_t>(states.size()) - 1}; }
};

// Throws InvalidArgument naming the pattern where its counts multiply to more than `max_states`.
[[nodiscard]] Thompson build_thompson(const Pattern& pattern, const Node& node, std::int32_t max_states);

}  // namespace airi::guard
