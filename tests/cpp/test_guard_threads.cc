// Meant to run under TSan as well.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "guard/automaton.h"
#include "guard/scanner.h"
#include "guard/token_masks.h"
#include "naive_guard.h"
#include "testing.h"

namespace airi::guard {
namespace {

using testing::as_bytes;
using testing::make_automaton;
using testing::scan;

TEST(one_automaton_serves_scanners_and_masks_on_many_threads) {
  const auto automaton = make_automaton({"ab+c", "\\bcat\\b"});
  const std::vector<std::string> tokens = {"a", "b", "bc", "cat", " ", ""};
  TokenMasks masks(automaton, tokens, {.cache_bytes = 200});
  const std::string text = "abbbc cat abc concat abbc";
  const std::vector<Match> expected = scan(automaton, text);
  std::vector<int> good(4);
  std::vector<std::thread> threads;
  for (int& mine : good) {
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        std::vector<std::uint32_t> words(masks.num_words());
        mine += scan(automaton, text) == expected ? 1 : 0;
        mine += masks.fill(masks.after(as_bytes(i % 2 == 0 ? "ab" : "x ca")), words) == (i % 2 == 0 ? 2U : 1U)
                    ? 1
                    : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int mine : good) EXPECT(mine == 600);
}

}  // namespace
}  // namespace airi::guard

RUN_TESTS()
