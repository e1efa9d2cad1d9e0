#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "guard/byte_set.h"
#include "guard/regex_ast.h"

// Sets of code points as ranges, and the bytes that UTF-8 writes them in.

namespace airi::guard {

using CodeRanges = std::vector<CodeRange>;

// In order, without overlaps and neighbours.
void normalize(CodeRanges& ranges);
// All code points that are not in `ranges`, which are normalized.
[[nodiscard]] CodeRanges complement(const CodeRanges& ranges);
// Adds the other case of every ASCII letter, and normalizes.
void add_other_case(CodeRanges& ranges);

// The code points that UTF-8 writes with the bytes of a sequence of ranges, one for each byte.
struct ByteSequence {
  struct Range {
    std::uint8_t first = 0;
    std::uint8_t last = 0;
    friend auto operator<=>(const Range&, const Range&) = default;
  };
  std::array<Range, 4> ranges{};
  std::size_t length = 0;
};

// The sequences of normalized ranges. Surrogates are written as if they were characters.
[[nodiscard]] std::vector<ByteSequence> byte_sequences(const CodeRanges& ranges);

}  // namespace airi::guard
