#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "guard/byte_set.h"
#include "guard/pattern.h"

namespace airi::guard {

// What stands before the first byte of a text, where a byte is asked for.
inline constexpr std::size_t kTextStart = 256;
inline constexpr std::size_t kNumContexts = 257;

// A place in a pattern between two bytes. Either bytes lead on from it, or a match has ended there: if the
// next byte (or the edge of the text) is in `ends_before`, which is all for a match that looks at nothing
// behind it.
struct Position {
  struct Edge {
    ByteSet bytes{};
    std::vector<std::int32_t> to{};
  };
  std::vector<Edge> edges{};
  ByteSet ends_before{};
};

// One pattern as an automaton without empty steps: a look back is decided when a position is entered, a look
// ahead is carried by it. From every position some continuation completes a match, so that a thread is open
// if and only if it has one.
struct PatternPositions {
  std::vector<Position> positions;
  std::array<std::vector<std::int32_t>, kNumContexts> starts;  // by the byte before the match
};

// Throws InvalidArgument naming the pattern: as parse() and build_thompson() do, or where no text matches it.
[[nodiscard]] PatternPositions build_positions(const Pattern& pattern, std::int32_t max_states);

}  // namespace airi::guard
