// What one step does about a prefix that is published does not depend on how many wait for it.

#include <cstdint>
#include <memory>
#include <vector>

#include "sched/waiting_queue.h"
#include "testing.h"

namespace airi {
namespace {

constexpr std::int32_t kBlock = 4;
constexpr std::int32_t kBlocks = 10;
constexpr std::int32_t kWaiting = 20 * WaitingQueue::kMostCaughtUp + 7;

// Many requests of a few tenants that have all their full blocks in common.
struct World {
  World() {
    for (std::int32_t i = 0; i < kWaiting; ++i) {
      Request& request = *requests.emplace_back(std::make_unique<Request>());
      request.id = RequestId{i};
      request.tenant = TenantId{i % 3};
      request.arrival = TimePoint{i};
      request.tokens.assign(kBlock * kBlocks + 1, 7);
      request.max_length = request.length() + 1;
      for (std::uint64_t block = 0; block < kBlocks; ++block)
        request.hashes.push_back({block + 1, block + 1});
      queue.push(&request, request.arrival);
    }
    publisher.hashes = requests.front()->hashes;
  }

  // The head of a step, if `cached` blocks are to be hit; counts whom that matches.
  const Request* plan(std::int32_t cached) {
    num_matches = 0;
    queue.begin_step();
    return again(cached);
  }
  const Request* again(std::int32_t cached) {
    const Request* head = queue.head(1, [&](const Request&) {
      ++num_matches;
      return cached;
    });
    queue.check_invariants();
    return head;
  }
  void publish(std::int32_t first, std::int32_t end) {
    publisher.num_published = end;
    queue.note_published(publisher, first);
  }
  [[nodiscard]] std::int32_t num_matching(std::int32_t blocks) const {
    std::int32_t count = 0;
    for (const auto& request : requests) count += request->num_matched == blocks ? 1 : 0;
    return count;
  }

  std::vector<std::unique_ptr<Request>> requests;
  Request publisher;
  TenantWeights weights;
  WaitingQueue queue{1, AgingRule(std::nullopt), weights,
                     WaitingQueue::Locality{.quantum_tokens = 1000, .block_size = kBlock}};
  std::int32_t num_matches = 0;
};

TEST(a_step_matches_so_many_at_most_of_those_that_wait_for_a_block) {
  World world;
  EXPECT(world.plan(0) == world.requests.front().get());
  EXPECT(world.num_matches == kWaiting);  // each once since it came
  world.publish(0, 8);
  std::int32_t caught_up = 0;
  while (caught_up < kWaiting) {
    EXPECT(world.plan(8) == world.requests.front().get());
    EXPECT(world.num_matches <= WaitingQueue::kMostCaughtUp);
    EXPECT(world.num_matches > 0);
    EXPECT(world.again(8) == world.requests.front().get());
    caught_up += world.num_matches;
    EXPECT(world.num_matching(8) == caught_up);
    EXPECT(world.requests[static_cast<std::size_t>(caught_up) - 1]->num_matched == 8);  // the oldest first
  }
  (void)world.plan(8);
  EXPECT(world.num_matches == 0);
}

TEST(what_is_published_while_others_still_catch_up_is_not_forgotten) {
  World world;
  (void)world.plan(0);
  world.publish(0, 4);
  (void)world.plan(4);
  world.publish(4, 8);
  for (std::int32_t i = 0; i < 3 * kWaiting / WaitingQueue::kMostCaughtUp; ++i) (void)world.plan(8);
  EXPECT(world.num_matching(8) == kWaiting);
}

TEST(those_that_leave_while_others_catch_up_are_not_looked_for) {
  World world;
  (void)world.plan(0);
  world.publish(0, 8);
  for (std::int32_t i = 0; i < kWaiting; i += 2) {
    world.queue.remove(world.requests[static_cast<std::size_t>(i)].get());
  }
  std::int32_t caught_up = 0;
  for (std::int32_t i = 0; i < 20; ++i) {
    (void)world.plan(8);
    caught_up += world.num_matches;
  }
  EXPECT(caught_up == kWaiting / 2);
  EXPECT(world.queue.size() == static_cast<std::size_t>(kWaiting / 2));
}

TEST(a_block_that_is_gone_before_anybody_looks_makes_nobody_look_twice) {
  World world;
  (void)world.plan(0);
  world.publish(0, 1);
  (void)world.plan(0);
  EXPECT(world.num_matches == 1);
  (void)world.plan(0);
  EXPECT(world.num_matches == 0);
  world.publish(0, 1);
  (void)world.plan(1);
  EXPECT(world.num_matches == WaitingQueue::kMostCaughtUp);
}

}  // namespace
}  // namespace airi

RUN_TESTS()
