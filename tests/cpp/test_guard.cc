// Patterns, scanners and masks by themselves; random ones are in fuzz_guard.cc.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "counting_new.h"
#include "guard/automaton.h"
#include "guard/scanner.h"
#include "guard/token_trie.h"
#include "guard/validators.h"
#include "naive_guard.h"
#include "random.h"
#include "testing.h"

namespace airi::guard {
namespace {

using testing::as_bytes;
using testing::make_automaton;
using testing::scan;

TEST(matches_are_leftmost_and_longest_and_do_not_overlap) {
  const auto automaton = make_automaton({"ab|abab|ba", "b+"});
  const std::vector<Match> expected = {
      {PatternId{1}, 1, 2}, {PatternId{0}, 0, 4}, {PatternId{1}, 3, 5}, {PatternId{0}, 4, 6}};
  std::vector<Match> found = scan(automaton, "ababba");
  EXPECT(found.size() == 4);
  for (const Match& match : expected) EXPECT(std::ranges::find(found, match) != found.end());
}

TEST(a_start_is_open_until_no_text_completes_it) {
  Scanner scanner(make_automaton({"abc"}));
  std::vector<Match> found;
  scanner.feed(as_bytes("xab"), found);
  EXPECT(scanner.open_start() == 1);
  scanner.feed(as_bytes("a"), found);
  EXPECT(scanner.open_start() == 3);
  scanner.feed(as_bytes("bc"), found);
  EXPECT(!scanner.open_start());
  EXPECT((found == std::vector<Match>{{PatternId{0}, 3, 6}}));
}

TEST(threads_that_are_merged_are_not_missed) {
  testing::Random random(5);
  for (const std::string regex : {"xaa(?:.*z)?|a.*b", "a.*b", "a|a.*b", "(?:ab*){3}z?", "b.{0,9}z|bx",
                                  "\\ba.*z\\b", "[ab]{4,9}(?!a)", "ax?|xb.*z|b.*a"}) {
    const Pattern pattern{.text = regex, .name = regex};
    const auto automaton = make_automaton({regex});
    for (int i = 0; i < 60; ++i) {
      std::string text;
      for (int k = 0; k < 60; ++k) text += "aaxxbbz \n"[random.below(9)];
      const std::vector<Match> expected = testing::NaiveMatcher(pattern).matches(text, PatternId{0});
      for (const std::size_t merge_at : {0U, 1U, 16U}) {
        Scanner scanner(automaton, {.merge_at = merge_at});
        std::vector<Match> found;
        scanner.feed(as_bytes(text), found);
        scanner.finish(found);
        EXPECT(found == expected);
      }
    }
  }
}

TEST(scanning_text_without_matches_does_not_allocate) {
  Scanner scanner(make_automaton({"[a-z]+@[a-z]+", "secret", "\\d{3}-\\d{2}"}));
  const std::string text = "some text without any of them, 12 and 345 things, or seconds\n";
  std::vector<Match> found;
  scanner.feed(as_bytes(text), found);
  const std::int64_t before = testing::num_allocations;
  for (int i = 0; i < 1000; ++i) scanner.feed(as_bytes(text), found);
  EXPECT(testing::num_allocations == before);
  EXPECT(found.empty());
}

TEST(the_tree_of_tokens_has_every_token_below_its_prefixes) {
  const std::vector<std::string> tokens = {"b", "", "ab", "a", "abc", "b", "\xFF", "ba"};
  const TokenTrie trie(tokens);
  EXPECT((std::vector<std::uint32_t>(trie.order().begin(), trie.order().end()) ==
          std::vector<std::uint32_t>{3, 2, 4, 0, 5, 7, 6}));
  EXPECT(trie.max_depth() == 3);
  EXPECT(trie.nodes().size() == 6);
  EXPECT(trie.nodes()[0].byte == 'a' && trie.nodes()[0].skip == 3);
  EXPECT(trie.nodes()[0].first_token == 0 && trie.nodes()[0].end_token == 3);
  EXPECT(trie.nodes()[3].byte == 'b' && trie.nodes()[3].first_token == 3 && trie.nodes()[3].end_token == 6);
  EXPECT(TokenTrie({}).nodes().empty());
}

TEST(validators_know_their_numbers) {
  EXPECT(passes(Validator::kLuhn, as_bytes("4111 1111-1111 1111")));
  EXPECT(!passes(Validator::kLuhn, as_bytes("4111 1111 1111 1112")));
  EXPECT(!passes(Validator::kLuhn, as_bytes("000000000000")));
  EXPECT(!passes(Validator::kLuhn, as_bytes("18")));
  EXPECT(passes(Validator::kIban, as_bytes("GB82 WEST 1234 5698 7654 32")));
  EXPECT(!passes(Validator::kIban, as_bytes("GB82 WEST 1234 5698 7654 33")));
  EXPECT(!passes(Validator::kIban, as_bytes("GB82 WEST 1234 5698 7654 3")));
  EXPECT(!passes(Validator::kIban, as_bytes("GB")));
  EXPECT(!passes(Validator::kIban, as_bytes("GB8200000000000000000000000000000000000000")));
}

TEST(what_does_not_fit_is_refused_by_name) {
  EXPECT_THROW(make_automaton({"[ab]*a[ab]{16}"}), InvalidArgument);
  EXPECT_THROW(make_automaton({"a{1000}{1000}"}), InvalidArgument);
  EXPECT_THROW(make_automaton({"(?:(?:a{1000}){1000}){1000}"}), InvalidArgument);
  EXPECT_THROW(make_automaton({}), InvalidArgument);
}

}  // namespace
}  // namespace airi::guard

RUN_TESTS()
