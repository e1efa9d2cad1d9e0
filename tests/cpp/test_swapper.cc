// R1: a preempted request keeps copies iff coming back by them is cheaper, against all that can be counted.

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "random.h"
#include "sched/swapper.h"
#include "testing.h"

namespace airi {
namespace {

constexpr std::int32_t kBlock = 4;
constexpr std::int32_t kBlocks = 24;
constexpr std::int32_t kChunk = 16;

StepTimeModel trained(double step_us, double token_us) {
  StepTimeModel model;
  for (int i = 0; i < 400; ++i) {
    StepWork work;
    work.add_decode(10);
    if (i % 2 == 1) work.add_chunk(0, 1 + i % 30);
    model.observe(work, step_us + token_us * static_cast<double>(work.tokens));
  }
  return model;
}

std::vector<std::int32_t> entries() {
  std::vector<std::int32_t> all;
  for (std::int32_t i = 0; i < kBlocks; ++i) all.push_back(i);
  return all;
}

std::vector<std::int64_t> slots(std::int32_t count) {
  std::vector<std::int64_t> all;
  for (std::int32_t i = 0; i < count; ++i) all.push_back(i);
  return all;
}

// Blocks of one request, some held by others too, and the host beside them.
struct World {
  World(testing::Random& random, double rate)
      : host(static_cast<std::int32_t>(random.below(20))),
        transfers({rate, rate, rate, rate, rate}),
        tables(entries(), SlabShape{1, kBlocks},
               AdmissionControl(AdmissionPolicy::kMaxUtil, kBlocks, kBlock, 0.0, 3),
               std::make_shared<const HashChain>(HashKey{}, std::vector<std::uint8_t>{}, kBlock), true),
        cache({}, entries(), kBlocks + host, TierSlots(slots(host)), TierSlots({}), transfers, ops) {
    tables.pool().add_slab(SlabId{0});
    tables.attach(cache, host);
    room = static_cast<std::int32_t>(random.below(24));
    ops.begin_step(room);
    request.serial = 1;
    const auto held = static_cast<std::int32_t>(1 + random.below(16));
    request.num_computed = held * kBlock - static_cast<std::int32_t>(random.below(kBlock));
    request.max_length = 1000;
    for (std::int32_t i = 0; i <= request.num_computed; ++i) request.tokens.push_back(1 + i);
    request.block_table.resize(static_cast<std::size_t>(held));
    EXPECT(tables.pool().try_take(request.block_table));
    const auto published =
        static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(held) + 1)) * kBlock;
    tables.publish(request, std::min(published, request.num_computed));
    shared = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(request.num_published) + 1));
    for (std::int32_t i = 0; i < shared; ++i)
      tables.pool().hold(request.block_table[static_cast<std::size_t>(i)]);
    known = request.num_published;
    if (known > 0 && random.below(3) == 0) distrust(random.below(known));
  }

  // Who shared the block with the request ended in an error.
  void distrust(std::int32_t block) {
    tables.pool().unpublish(request.block_table[static_cast<std::size_t>(block)]);
    known = block;
  }

  std::int32_t host;
  std::int32_t room = 0;
  std::int32_t shared = 0;
  std::int32_t known = 0;  // leading blocks of the table that can be found again
  Transfers transfers;
  MemoryOps ops;
  BlockTables tables;
  TierCache cache;
  Request request;
};

double prefill(const StepTimeModel& model, std::int32_t from, std::int32_t to) {
  double micros = 0;
  while (from < to) {
    const std::int32_t count = std::min(kChunk, to - from);
    StepWork work;
    work.add_chunk(from, count);
    micros += model.estimate(work);
    from += count;
  }
  return micros;
}

TEST(the_cheaper_way_back_is_taken) {
  testing::Random random(11);
  int kept = 0;
  int computed = 0;
  for (int round = 0; round < 2000; ++round) {
    const StepTimeModel model =
        trained(static_cast<double>(10 + random.below(500)), static_cast<double>(1 + random.below(40)));
    const auto rate = static_cast<double>(random.below(200));
    World world(random, rate);
    const std::int32_t first = std::min(world.shared, world.known);
    const std::int32_t full = world.known - first;
    const double copy =
        rate > 0 ? static_cast<double>(kGranuleBytes) / rate : std::numeric_limits<double>::infinity();
    const double swap = 2 * full * copy + prefill(model, world.known * kBlock, world.request.num_computed);
    const double recompute = prefill(model, first * kBlock, world.request.num_computed);
    const bool has_room = full > 0 && full <= world.host && full <= world.room;
    if (has_room && std::abs(swap - recompute) < 1e-6 * recompute) continue;
    Swapper swapper(kChunk, world.tables, model);
    swapper.keep(world.request);
    const bool swapped = has_room && swap < recompute;
    EXPECT(std::ssize(world.ops.step()) == (swapped ? full : 0));
    EXPECT(swapper.num_swaps() == (swapped ? 1 : 0));
    swapper.release(world.request);
    EXPECT(swapper.num_kept() == 0);
    (swapped ? kept : computed) += 1;
  }
  EXPECT(kept > 200 && computed > 200);
}

}  // namespace
}  // namespace airi

RUN_TESTS()
