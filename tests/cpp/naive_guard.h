#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "guard/pattern.h"
#include "guard/regex_ast.h"
#include "guard/scanner.h"

namespace airi::testing {

// What a pattern matches, by walking its tree over all spans: of the automaton it uses the parser only.
class NaiveMatcher {
 public:
  explicit NaiveMatcher(const guard::Pattern& pattern);

  // Whether the bytes [start, end) of the text are a candidate.
  [[nodiscard]] bool is_candidate(std::string_view text, std::size_t start, std::size_t end) const;
  // Leftmost, of those the longest, then the same from its end on.
  [[nodiscard]] std::vector<guard::Match> matches(std::string_view text, guard::PatternId id) const;

 private:
  guard::Pattern pattern_;
  guard::Node node_;
};

}  // namespace airi::testing
