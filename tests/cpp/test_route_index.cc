// The index of who has which block against sets, and what was sent on top of it.

#include <array>
#include <cstdint>
#include <vector>

#include "naive_route.h"
#include "random.h"
#include "route/block_locations.h"
#include "route/sent_blocks.h"
#include "testing.h"

namespace airi {
namespace {

using namespace testing;  // NOLINT(google-build-using-namespace): the helpers of naive_route.h
using route::BlockLocations;
using route::PrefixMatch;
using route::ReplicaSlot;

std::array<PrefixMatch, route::kMaxReplicas> match(const BlockLocations& index,
                                                   const std::vector<Hash128>& chain) {
  std::array<PrefixMatch, route::kMaxReplicas> found{};
  index.match(chain, ~std::uint64_t{0}, found);
  return found;
}

TEST(the_index_is_a_set_per_replica_and_tier) {
  testing::Random random(1);
  constexpr std::int32_t kReplicas = 5;
  BlockLocations index;
  std::vector<NaiveBlocks> model(route::kMaxReplicas);
  for (std::int32_t i = 0; i < kReplicas; ++i) {
    model[static_cast<std::size_t>(i)].capacity = 300;
    index.set_capacity(ReplicaSlot{i}, 300);
  }
  for (int turn = 0; turn < 30'000; ++turn) {
    const ReplicaSlot replica{random.below(kReplicas)};
    NaiveBlocks& blocks = model[airi::index(replica)];
    const std::vector<Hash128> chain = draw_chain(random, 7, 4);
    const std::int32_t what = random.below(40);
    if (what < 36 && !chain.empty()) {
      const auto kind = what < 14 ? KvEventKind::kRemoved : KvEventKind::kStored;
      const KvEvent event =
          event_of(kind, KvTier{random.below(3)}, chain.back(), ModelId{random.below(8) == 0 ? 0 : 3});
      if (what >= 30) {
        const bool is_new = !blocks.has(testing::naive(chain.back())) &&
                            blocks.sent.insert(testing::naive(chain.back())).second;
        EXPECT(index.mark_sent(replica, chain.back()) == is_new);
      } else {
        index.apply(replica, kModel, {&event, 1});
        if (event.model == kModel) blocks.apply(event);
      }
    } else if (what == 36 && !chain.empty()) {
      index.unmark_sent(replica, chain.back());
      blocks.sent.erase(testing::naive(chain.back()));
    } else if (what == 37 && turn % 10 == 0) {
      index.forget_stored(replica);
      for (auto& tier : blocks.stored) tier.clear();
    } else if (what == 38 && turn % 10 == 0) {
      index.forget(replica);
      index.set_capacity(replica, 200);
      blocks = {.stored = {}, .sent = {}, .capacity = 200, .left_out = 0};
    }
    const auto found = match(index, chain);
    for (std::size_t i = 0; i < found.size(); ++i) {
      const PrefixMatch expected = model[i].match(chain);
      EXPECT(found[i].stored == expected.stored);
      EXPECT(found[i].expected == expected.expected);
    }
    if (turn % 50 != 0) continue;
    index.check_invariants();
    for (std::int32_t i = 0; i < kReplicas; ++i) {
      const NaiveBlocks& known = model[static_cast<std::size_t>(i)];
      EXPECT(index.num_stored(ReplicaSlot{i}) == static_cast<std::int64_t>(known.num_stored()));
      EXPECT(index.num_left_out(ReplicaSlot{i}) == known.left_out);
    }
  }
}

TEST(a_match_leaves_replicas_alone_that_are_not_asked_for) {
  BlockLocations index;
  const std::vector<Hash128> chain = numbered(0, 3);
  for (std::int32_t i = 0; i < 2; ++i) {
    index.set_capacity(ReplicaSlot{i}, 10);
    index.apply(ReplicaSlot{i}, kModel, all_stored(chain));
  }
  std::array<PrefixMatch, route::kMaxReplicas> found{};
  found[0].stored = 77;
  index.match(chain, 2, found);
  EXPECT(found[0].stored == 77);
  EXPECT(found[1].stored == 3);
}

TEST(memory_is_bounded_by_capacities_and_that_of_a_lost_replica_is_freed) {
  BlockLocations index;
  const std::size_t least = index.memory_bytes();
  for (std::int32_t i = 0; i < 8; ++i) {
    index.set_capacity(ReplicaSlot{i}, 5000);
    index.apply(ReplicaSlot{i}, kModel, all_stored(numbered(static_cast<std::uint64_t>(i) << 32, 20'000)));
    EXPECT(index.num_stored(ReplicaSlot{i}) == 5000);
    EXPECT(index.num_left_out(ReplicaSlot{i}) == 15'000);
  }
  EXPECT(index.num_hashes() == 40'000);
  EXPECT(index.memory_bytes() <= 40'000 * 48 * 8 / 3);
  for (std::int32_t i = 0; i < 8; ++i) index.forget(ReplicaSlot{i});
  EXPECT(index.num_hashes() == 0);
  EXPECT(index.memory_bytes() == least);
  index.check_invariants();
}

TEST(what_was_sent_counts_for_a_time_and_a_number_of_blocks) {
  BlockLocations index;
  index.set_capacity(ReplicaSlot{0}, 1000);
  route::SentBlocks sent(index, 100, 20);
  const auto expected = [&](std::uint64_t from) { return match(index, numbered(from, 8))[0].expected; };
  (void)sent.add(ReplicaSlot{0}, numbered(0, 8), TimePoint{0});
  (void)sent.add(ReplicaSlot{0}, numbered(100, 8), TimePoint{50});
  EXPECT(expected(0) == 8 && expected(100) == 8);
  const route::SentId third = sent.add(ReplicaSlot{0}, numbered(200, 8), TimePoint{60});
  EXPECT(expected(0) == 0 && expected(100) == 8 && expected(200) == 8);
  EXPECT(sent.num_kept() == 18);
  sent.expire(TimePoint{149});
  EXPECT(expected(100) == 8);
  sent.expire(TimePoint{150});
  EXPECT(expected(100) == 0 && expected(200) == 8);
  sent.take_back(third);
  EXPECT(expected(200) == 0);
  (void)sent.add(ReplicaSlot{0}, numbered(300, 400), TimePoint{160});
  EXPECT(match(index, numbered(300, 400))[0].expected == 19);
  EXPECT(sent.num_kept() == 20);
  sent.expire(TimePoint{1000});
  EXPECT(sent.num_kept() == 0 && index.num_hashes() == 0);
}

}  // namespace
}  // namespace airi

RUN_TESTS()
