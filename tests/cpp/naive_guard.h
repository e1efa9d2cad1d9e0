#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guard/automaton.h"
#include "guard/pattern.h"
#include "guard/regex_ast.h"
#include "guard/scanner.h"

namespace airi::testing {

inline std::span<const std::uint8_t> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

// One automaton over patterns that are named by their texts.
inline std::shared_ptr<const guard::Automaton> make_automaton(const std::vector<std::string>& texts) {
  std::vector<guard::Pattern> patterns;
  for (const std::string& text : texts) patterns.push_back({.text = text, .name = text});
  return std::make_shared<guard::Automaton>(std::move(patterns));
}

// What a scanner finds in a whole text.
inline std::vector<guard::Match> scan(const std::shared_ptr<const guard::Automaton>& automaton,
                                      std::string_view text) {
  guard::Scanner scanner(automaton);
  std::vector<guard::Match> found;
  scanner.feed(as_bytes(text), found);
  scanner.finish(found);
  return found;
}

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
