// Threads that work in turns. Meant to run under TSan as well.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "sim/turns.h"
#include "testing.h"

namespace airi {
namespace {

// What a member has: nobody else touches it between two turns.
struct alignas(64) Own {
  std::int64_t seen = 0;   // the sum of what the caller said
  std::int64_t ahead = 0;  // bites that are left until the next turn
  std::int64_t done = 0;
};

constexpr auto kNoneAhead = [](std::size_t) { return false; };

TEST(every_share_of_every_turn_is_done_once_and_sees_what_the_caller_wrote) {
  for (const std::size_t members : {1U, 2U, 5U}) {
    std::vector<Own> own(members);
    std::int64_t said = 0;
    std::int64_t expected = 0;
    {
      Turns turns(
          members,
          [&](std::size_t i) {
            own[i].seen += said;
            own[i].ahead = static_cast<std::int64_t>(i);
          },
          [&](std::size_t i) {
            own[i].done += own[i].ahead > 0 ? 1 : 0;
            return own[i].ahead-- > 0;
          });
      for (said = 1; said <= 20'000; ++said) {
        turns.take();
        expected += said;
        const auto sum = std::accumulate(own.begin(), own.end(), std::int64_t{0},
                                         [](std::int64_t total, const Own& o) { return total + o.seen; });
        EXPECT(sum == expected * static_cast<std::int64_t>(members));
      }
    }
    EXPECT(own.front().done == 0);
    for (std::size_t i = 1; i < members; ++i) EXPECT(own[i].done <= 20'000 * static_cast<std::int64_t>(i));
  }
}

TEST(a_member_that_waits_works_ahead) {
  std::atomic<int> bites{0};
  Turns turns(
      2,
      [&](std::size_t i) {
        while (i == 0 && bites.load() < 3) std::this_thread::yield();
      },
      [&](std::size_t i) { return i == 1 && ++bites < 3; });
  turns.take();
  EXPECT(bites.load() >= 3);
}

TEST(the_caller_hears_what_a_member_threw) {
  for (const std::size_t bad : {0U, 1U, 2U}) {
    Turns turns(
        3,
        [&](std::size_t i) {
          if (i == bad) throw std::runtime_error("member " + std::to_string(i));
        },
        kNoneAhead);
    std::string heard;
    try {
      turns.take();
    } catch (const std::runtime_error& error) {
      heard = error.what();
    }
    EXPECT(heard == "member " + std::to_string(bad));
  }
}

TEST(the_caller_hears_by_the_next_turn_what_was_thrown_ahead_of_it) {
  std::atomic<bool> thrown{false};
  Turns turns(
      2, [](std::size_t) {},
      [&](std::size_t i) -> bool {
        if (i == 0 || thrown.exchange(true)) return false;
        throw std::runtime_error("ahead");
      });
  std::string heard;
  try {
    turns.take();
    while (!thrown.load()) std::this_thread::yield();
    turns.take();
  } catch (const std::runtime_error& error) {
    heard = error.what();
  }
  EXPECT(heard == "ahead");
}

}  // namespace
}  // namespace airi

RUN_TESTS()
