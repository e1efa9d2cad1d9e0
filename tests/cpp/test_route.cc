// The router against one that looks everything through, and by example.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "naive_route.h"
#include "random.h"
#include "route/replica_router.h"
#include "testing.h"

namespace airi {
namespace {

using namespace testing;  // NOLINT(google-build-using-namespace): the helpers of naive_route.h
using route::ReplicaId;
using route::ReplicaRouter;

// A router and the one that it is compared with, under the same random calls.
struct World {
  explicit World(std::uint64_t seed) : random(seed) {
    options = {.block_size = kBlock,
               .load_guard = 1.0 + 0.25 * random.below(8),
               .sent_ttl = 400,
               .sent_blocks = 60 + random.below(200)};
    router.emplace(options);
    model.emplace(options);
    for (int i = 0; i < 3; ++i) add();
  }

  double weight(std::int32_t of) { return static_cast<double>(random.below(5)) / of; }

  void add() {
    if (replicas.size() == 7) return;
    route::ReplicaOptions replica{.model = kModel,
                                  .capacity_blocks = random.below(3) == 0 ? 20 : 400,
                                  .rates = {.pieces = {}, .max_batch_tokens = 8 + random.below(40)}};
    // Many equal ones, and some that know nothing.
    if (random.below(4) != 0) {
      replica.rates.pieces = {{{.step = 50, .token = 0, .seq = 1, .context = 0.5, .pair = 0},
                               {.step = 20, .token = 4, .seq = 1, .context = 0.5, .pair = 0.25}}};
    }
    if (random.below(4) == 0)
      replica.rates.pieces[0] = {weight(1), weight(2), weight(2), weight(4), weight(8)};
    const ReplicaId id = router->add(replica);
    model->add(id, replica);
    replicas.push_back(id);
  }

  ReplicaId any() {
    return replicas[static_cast<std::size_t>(random.below(static_cast<std::int32_t>(replicas.size())))];
  }
  RequestId any_request() { return RequestId{random.below(static_cast<std::int32_t>(next_request) + 1)}; }

  void change_replicas() {
    const ReplicaId id = any();
    switch (random.below(6)) {
      case 0:
        add();
        break;
      case 1:
        if (replicas.size() == 1) break;
        router->drain(id);
        model->drain(id);
        break;
      case 2:
        if (replicas.size() == 1) break;
        router->remove(id);
        model->remove(id);
        std::erase(replicas, id);
        break;
      case 3: {
        const Micros wake_us = random.below(2000);
        router->sleep(id, wake_us);
        model->sleep(id, wake_us);
        break;
      }
      case 4:
        router->wake(id);
        model->wake(id);
        break;
      default: {
        const route::EngineCounts counts{.waiting = random.below(9), .running = random.below(9)};
        router->count(id, counts);
        model->count(id, counts);
      }
    }
  }

  void tell_events() {
    std::vector<KvEvent> events;
    for (std::int32_t n = random.below(6); n >= 0; --n) {
      const std::vector<Hash128> chain = draw_chain(random, 6, 3);
      for (const Hash128& hash : chain) {
        events.push_back(random.below(5) == 0 ? removed(hash) : stored(hash, KvTier{random.below(3)}));
      }
    }
    const ReplicaId id = any();
    if (random.below(20) == 0) {
      std::erase_if(events, [](const KvEvent& e) { return e.kind != KvEventKind::kStored; });
      router->replace(id, events);
      model->replace(id, events);
    } else {
      router->apply(id, events);
      model->apply(id, events);
    }
  }

  void tell_requests() {
    const RequestId id = any_request();
    if (random.below(2) == 0) {
      EXPECT(router->first_token(id) == model->first_token(id));
    } else {
      const std::int32_t output = random.below(50);
      EXPECT(router->ended(id, output) == model->ended(id, output));
    }
  }

  void route_one() {
    const std::vector<Hash128> chain = draw_chain(random, 6, 3);
    const std::int32_t tokens =
        std::max(1, static_cast<std::int32_t>(chain.size()) * kBlock + random.below(20) * random.below(2));
    const route::RouteRequest request{.chain = chain, .input_tokens = tokens};
    now = now + random.below(60);
    const auto choice = router->choose(request, now);
    const auto expected = model->choose(request, now);
    EXPECT(choice.has_value() == expected.has_value());
    if (!choice) return;
    EXPECT(choice->replica == *expected);
    compare(choice->candidates, model->candidates(request, now));
    const ReplicaId to = random.below(10) == 0 ? any() : choice->replica;
    const RequestId id{next_request++};
    router->sent(id, to, request, now);
    model->sent(id, to, request, now);
  }

  static void compare(std::vector<route::Candidate> found, const std::vector<route::Candidate>& expected) {
    std::ranges::sort(found, {}, [](const route::Candidate& c) { return raw(c.replica); });
    EXPECT(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      const route::Candidate &a = found[i], &b = expected[i];
      EXPECT(a.replica == b.replica);
      EXPECT(a.stored_tokens == b.stored_tokens);
      EXPECT(a.cached_tokens == b.cached_tokens);
      EXPECT(a.outstanding_requests == b.outstanding_requests);
      EXPECT(a.outstanding_tokens == b.outstanding_tokens);
      EXPECT(a.last_sent == b.last_sent);
      EXPECT(a.wake_us == b.wake_us);
      EXPECT(a.wait_us == b.wait_us);
      EXPECT(a.prefill_us == b.prefill_us);
      EXPECT(a.delay_us == b.delay_us);
      EXPECT(a.load_us == b.load_us);
      EXPECT(a.is_overloaded == b.is_overloaded);
    }
  }

  testing::Random random;
  route::RouterOptions options;
  std::optional<ReplicaRouter> router;
  std::optional<NaiveRouter> model;
  std::vector<ReplicaId> replicas;
  TimePoint now{0};
  std::int64_t next_request = 0;
};

TEST(choices_are_those_of_one_that_looks_everything_through) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    World world(seed);
    for (int turn = 0; turn < 600; ++turn) {
      const std::int32_t what = world.random.below(40);
      if (what == 0) {
        world.change_replicas();
      } else if (what < 12) {
        world.tell_events();
      } else if (what < 24) {
        world.tell_requests();
      } else {
        world.route_one();
      }
      if (turn % 20 == 0) world.router->check_invariants();
    }
  }
}

// Two replicas whose steps take a microsecond a token.
struct Pair {
  Pair() {
    for (ReplicaId* id : {&first, &second}) {
      *id = router.add({.model = kModel,
                        .capacity_blocks = 1000,
                        .rates = {.pieces = {{{.step = 1}, {.token = 1}}}, .max_batch_tokens = 64}});
    }
  }
  ReplicaId choose(const std::vector<Hash128>& chain, std::int32_t tokens, std::int64_t now = 0) {
    return router.choose({.chain = chain, .input_tokens = tokens}, TimePoint{now})->replica;
  }
  void send(std::int64_t id, ReplicaId to, const std::vector<Hash128>& chain, std::int32_t tokens,
            std::int64_t now = 0) {
    router.sent(RequestId{id}, to, {.chain = chain, .input_tokens = tokens}, TimePoint{now});
  }

  ReplicaRouter router{{.block_size = kBlock, .load_guard = 100, .sent_ttl = 1000, .sent_blocks = 1000}};
  ReplicaId first{}, second{};
};

TEST(a_prompt_goes_where_its_beginning_is_stored_unless_more_waits_there_than_that_saves) {
  Pair pair;
  const std::vector<Hash128> chain = numbered(0, 10);
  pair.router.apply(pair.second, all_stored(chain));
  EXPECT(pair.choose(chain, 41) == pair.second);
  pair.send(0, pair.second, numbered(100, 5), 39);
  EXPECT(pair.choose(chain, 41) == pair.second);
  pair.send(1, pair.second, numbered(200, 5), 45);  // what it computes counts twice
  EXPECT(pair.choose(chain, 41) == pair.first);
  EXPECT(pair.router.ended(RequestId{1}, 0));
  EXPECT(pair.choose(chain, 41) == pair.second);
}

TEST(what_replicas_tell_of_a_prompts_blocks_is_less_to_wait_for) {
  Pair pair;
  const std::vector<Hash128> chain = numbered(0, 10);
  pair.send(0, pair.first, chain, 42);
  const auto outstanding = [&] {
    return pair.router.choose({.chain = {}, .input_tokens = 1}, TimePoint{0})
        ->candidates[0]
        .outstanding_tokens;
  };
  EXPECT(outstanding() == 42);
  pair.router.apply(pair.first, all_stored(numbered(0, 3)));
  EXPECT(outstanding() == 30);
  pair.router.apply(pair.first, all_stored(numbered(3, 7)));
  EXPECT(outstanding() == 2);
  EXPECT(pair.router.first_token(RequestId{0}));
  EXPECT(outstanding() == 0);
}

TEST(a_request_that_ends_before_its_first_token_brings_nothing) {
  Pair pair;
  const std::vector<Hash128> chain = numbered(0, 10);
  pair.send(0, pair.first, chain, 41);
  EXPECT(
      pair.router.choose({.chain = chain, .input_tokens = 41}, TimePoint{1})->candidates[0].cached_tokens ==
      40);
  EXPECT(pair.router.ended(RequestId{0}, 0));
  EXPECT(
      pair.router.choose({.chain = chain, .input_tokens = 41}, TimePoint{1})->candidates[0].cached_tokens ==
      0);
  EXPECT(!pair.router.ended(RequestId{0}, 0));
}

TEST(a_replica_that_drains_sleeps_or_is_gone_is_not_chosen_or_pays_for_it) {
  Pair pair;
  const std::vector<Hash128> chain = numbered(0, 10);
  pair.router.apply(pair.first, all_stored(chain));
  pair.router.sleep(pair.first, 79);
  EXPECT(pair.choose(chain, 41) == pair.first);
  pair.router.sleep(pair.first, 81);
  EXPECT(pair.choose(chain, 41) == pair.second);
  pair.send(7, pair.first, {}, 1, 100);  // wakes it
  EXPECT(pair.choose(chain, 41, 120) == pair.first);
  pair.router.wake(pair.first);
  pair.router.drain(pair.first);
  EXPECT(pair.choose(chain, 41, 200) == pair.second);
  pair.router.drain(pair.second);
  EXPECT(!pair.router.choose({.chain = chain, .input_tokens = 41}, TimePoint{200}));
  pair.router.remove(pair.first);
  EXPECT(!pair.router.first_token(RequestId{7}));
  EXPECT_THROW(pair.router.apply(pair.first, all_stored(chain)), InvalidArgument);
  // Its place is another's, who knows nothing of what it had.
  const ReplicaId third = pair.router.add({.model = kModel, .capacity_blocks = 10, .rates = {}});
  EXPECT(raw(third) == 2);
  EXPECT(
      pair.router.choose({.chain = chain, .input_tokens = 41}, TimePoint{200})->candidates[0].cached_tokens ==
      0);
}

TEST(of_equals_the_least_loaded_then_the_longest_not_sent_to) {
  Pair pair;
  EXPECT(pair.choose({}, 10) == pair.first);
  pair.send(0, pair.first, {}, 10);
  EXPECT(pair.router.ended(RequestId{0}, 1));
  EXPECT(pair.choose({}, 10) == pair.second);
  pair.send(1, pair.second, {}, 10);
  EXPECT(pair.router.ended(RequestId{1}, 1));
  EXPECT(pair.choose({}, 10) == pair.first);
}

TEST(a_replica_with_more_outstanding_work_than_the_guard_allows_is_left_out) {
  ReplicaRouter router({.block_size = kBlock, .load_guard = 1.25, .sent_ttl = 1000, .sent_blocks = 1000});
  std::vector<ReplicaId> ids;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(router.add(
        {.model = kModel, .capacity_blocks = 4096, .rates = {.pieces = {}, .max_batch_tokens = 64}}));
  }
  const std::vector<Hash128> chain = numbered(0, 2000);
  router.apply(ids[0], all_stored(chain));
  testing::Random random(4);
  for (std::int32_t i = 0; i < 500; ++i) {
    const route::RouteRequest request{.chain = chain, .input_tokens = 8000 + random.below(90)};
    const auto choice = router.choose(request, TimePoint{i});
    double load = 0, most_work = 0;
    for (const route::Candidate& c : choice->candidates) {
      load += c.load_us;
      most_work = std::max(most_work, c.prefill_us);
    }
    for (const route::Candidate& c : choice->candidates) {
      if (c.replica == choice->replica) EXPECT(c.load_us <= 1.25 * load / 4 + most_work);
    }
    router.sent(RequestId{i}, choice->replica, request, TimePoint{i});
    if (i >= 20) (void)router.ended(RequestId{i - 20 + random.below(20)}, 1);
  }
}

TEST(mistakes_are_named) {
  Pair pair;
  const std::vector<Hash128> chain = numbered(0, 3);
  EXPECT_THROW((void)pair.choose(chain, 11), InvalidArgument);
  EXPECT_THROW((void)pair.choose({}, 0), InvalidArgument);
  pair.send(0, pair.first, chain, 12);
  EXPECT_THROW(pair.send(0, pair.second, chain, 12), InvalidArgument);
  EXPECT_THROW(pair.send(1, ReplicaId{9}, chain, 12), InvalidArgument);
  EXPECT_THROW(pair.router.sleep(pair.first, -1), InvalidArgument);
  EXPECT_THROW(pair.router.count(pair.first, {.waiting = -1, .running = 0}), InvalidArgument);
  EXPECT_THROW((void)pair.router.ended(RequestId{0}, -1), InvalidArgument);
  EXPECT_THROW(ReplicaRouter({.block_size = 0}), InvalidArgument);
  EXPECT_THROW(ReplicaRouter({.load_guard = 0.5}), InvalidArgument);
  for (std::size_t i = 2; i < route::kMaxReplicas; ++i) (void)pair.router.add({});
  EXPECT_THROW((void)pair.router.add({}), InvalidArgument);
}

}  // namespace
}  // namespace airi

RUN_TESTS()
