// Bytes become patterns, a text in pieces, and tokens: whatever they say, what is found is what a naive
// matcher finds, nothing depends on the pieces, and masks forbid what single steps do.

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "fuzz_bytes.h"
#include "fuzz_main.h"
#include "guard/automaton.h"
#include "guard/scanner.h"
#include "guard/token_masks.h"
#include "naive_guard.h"

namespace airi::testing {
namespace {

using guard::Automaton;
using guard::MaskState;
using guard::Match;
using guard::Pattern;
using guard::PatternId;
using guard::Scanner;
using guard::TokenId;
using guard::TokenMasks;

constexpr auto kParts = std::to_array<std::string_view>(
    {"a",   "b",    "1",    " ",     "\xC3\xA9",     ".",       "\\d",    "\\w",    "\\W",
     "\\s", "[ab]", "[^a]", "[^1-]", "\\b",          "\\B",     "^",      "$",      "|",
     "(",   ")",    "(?:",  "(?i:",  "(?=a)",        "(?!\\w)", "(?<=1)", "(?<!b)", "*",
     "+",   "?",    "{2}",  "{1,3}", "{2,}",         ".*",      "|a.*b",  "{,2}",   "\\x61",
     "[",   "]",    "\\",   "{",     "\xE2\x82\xAC", "A",       "-",      "\\1"});
constexpr auto kTexts = std::to_array<std::string_view>(
    {"a", "b", "1", " ", "\xC3\xA9", "\xC3", "\xA9", "A", "\n", "-", "ab", "\xE2\x82\xAC", "aa", "1b"});

std::string draw_text(Bytes& bytes, std::span<const std::string_view> parts, std::int32_t most) {
  std::string text;
  for (std::int32_t i = bytes.below(most + 1); i > 0; --i) {
    text += parts[static_cast<std::size_t>(bytes.below(static_cast<std::int32_t>(parts.size())))];
  }
  return text;
}

Pattern draw_pattern(Bytes& bytes) {
  Pattern pattern;
  pattern.name = "fuzzed";
  pattern.literal = bytes.one_in(8);
  pattern.text = draw_text(bytes, pattern.literal ? std::span<const std::string_view>(kTexts) : kParts, 8);
  pattern.ignore_case = bytes.one_in(4);
  pattern.word_boundary = bytes.one_in(6);
  pattern.holds = !bytes.one_in(4);
  return pattern;
}

std::vector<Pattern> draw_patterns(Bytes& bytes) {
  std::vector<Pattern> patterns;
  for (std::int32_t i = 1 + bytes.below(3); i > 0; --i) {
    Pattern pattern = draw_pattern(bytes);
    try {
      static_cast<void>(guard::build_positions(pattern, 2000));
      patterns.push_back(std::move(pattern));
    } catch (const InvalidArgument&) {
      // Refused, which most random texts are.
    }
  }
  return patterns;
}

void check_scanner(Bytes& bytes, const std::shared_ptr<const Automaton>& automaton, std::string_view text) {
  Scanner scanner(automaton, {.merge_at = static_cast<std::size_t>(bytes.below(4))});
  std::vector<Match> found;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t count = std::min(text.size() - at, static_cast<std::size_t>(bytes.below(6)));
    scanner.feed(as_bytes(text.substr(at, count)), found);
    scanner.check_invariants();
    at += count == 0 ? 0 : count;
    AIRI_CHECK(scanner.open_start().value_or(0) <= scanner.position()) << "what is open has begun";
    if (bytes.empty() && count == 0) {
      scanner.feed(as_bytes(text.substr(at)), found);
      break;
    }
  }
  scanner.finish(found);
  std::vector<Match> expected;
  for (std::int32_t i = 0; const Pattern& pattern : automaton->patterns()) {
    const auto own = NaiveMatcher(pattern).matches(text, PatternId{i++});
    expected.insert(expected.end(), own.begin(), own.end());
  }
  std::ranges::sort(found);
  AIRI_CHECK(found == expected) << "found " << found.size() << " matches, expected " << expected.size();
}

void check_masks(const std::shared_ptr<const Automaton>& automaton, std::string_view text) {
  std::vector<std::string> tokens(kTexts.begin(), kTexts.end());
  tokens.insert(tokens.end(), {"", "a1 b", "b\xC3", "\xA9 a", "aab1"});
  TokenMasks masks(automaton, tokens, {.cache_bytes = text.size() % 2 == 0 ? 0U : 1U << 20});
  const MaskState state = masks.after(as_bytes(text));
  std::vector<std::uint32_t> words(masks.num_words());
  static_cast<void>(masks.fill(state, words));
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const bool forbidden = ((words[id / 32] >> (id % 32)) & 1) != 0;
    const auto next = masks.advance(state, TokenId{static_cast<std::int32_t>(id)});
    AIRI_CHECK(forbidden == !next.has_value()) << "token " << id;
  }
  AIRI_CHECK(masks.restore(as_bytes(TokenMasks::serialize(state))) == state) << "a state survives its bytes";
}

void run(std::span<const std::uint8_t> input) {
  Bytes bytes(input);
  const std::vector<Pattern> patterns = draw_patterns(bytes);
  if (patterns.empty()) return;
  const std::int32_t max_states = bytes.one_in(3) ? 64 : 4000;
  std::shared_ptr<const Automaton> automaton;
  try {
    automaton = std::make_shared<Automaton>(patterns, guard::AutomatonOptions{.max_states = max_states});
  } catch (const InvalidArgument&) {
    return;
  }
  AIRI_CHECK(Automaton(patterns, {.max_states = max_states}).canonical() == automaton->canonical())
      << "the same patterns make the same automaton";
  while (!bytes.empty()) {
    const std::string text = draw_text(bytes, kTexts, 30);
    check_scanner(bytes, automaton, text);
    check_masks(automaton, text);
  }
}

}  // namespace
}  // namespace airi::testing

int main(int argc, char** argv) { return airi::testing::fuzz_main(argc, argv, airi::testing::run); }
