// A broken invariant names itself: whatever is wrong in a scheduler's books, check_invariants() says what,
// and of which request, block or slot.

#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "sched/model_scheduler.h"
#include "step_arrays.h"
#include "testing.h"

namespace airi {
namespace {

constexpr std::int32_t kBlock = 4;
constexpr std::int32_t kBlocks = 32;

SchedulerOptions options() {
  SchedulerOptions options;
  options.max_num_seqs = 2;
  options.max_batch_tokens = 64;
  options.max_prefill_chunk = 64;
  options.num_bands = 2;
  options.locality_quantum_tokens = 1000;
  return options;
}

std::vector<std::int32_t> entries() {
  std::vector<std::int32_t> all;
  for (std::int32_t i = 0; i < kBlocks; ++i) all.push_back(i);
  return all;
}

// Requests 10 and 11 run, 12 and 13 wait.
struct World {
  World() {
    scheduler.slab_pool().add_slab(SlabId{0});
    for (std::int32_t i = 0; i < 4; ++i) {
      Request& request = *requests.emplace_back(std::make_unique<Request>());
      request.id = RequestId{10 + i};
      request.serial = static_cast<std::uint64_t>(i) + 1;
      request.arrival = TimePoint{i};
      request.tokens.assign(9, i);
      request.prompt_length = request.length();
      request.max_length = request.length() + 8;
      request.min_length = request.length();
      scheduler.accept(&request, TimePoint{});
    }
    scheduler.plan(TimePoint{5}, TimePoint{5}, out);
  }

  [[nodiscard]] Request& running(std::size_t i) { return *requests[i]; }
  [[nodiscard]] Request& waiting(std::size_t i) { return *requests[2 + i]; }
  [[nodiscard]] BlockPool& pool() { return scheduler.slab_pool(); }

  // What check_invariants() throws; nothing where all is well.
  [[nodiscard]] std::string complaint() const {
    try {
      scheduler.check_invariants();
    } catch (const InvariantError& error) {
      return error.what();
    }
    return {};
  }

  std::vector<std::unique_ptr<Request>> requests;
  testing::StepArrays arrays{{{.block_size = kBlock,
                               .bytes_per_block = kGranuleBytes,
                               .max_model_len = 64,
                               .max_num_seqs = 2,
                               .max_batch_tokens = 64,
                               .num_slabs = 1}},
                             16};
  StepWriter out{arrays.buffers()};
  TenantWeights weights;
  StepTimeModel step_time;
  DecisionLog log{0};
  ModelScheduler scheduler{
      options(),
      BlockTables(entries(), SlabShape{1, kBlocks},
                  AdmissionControl(AdmissionPolicy::kNoEvict, kBlocks, kBlock, 0.0, 3),
                  std::make_shared<const HashChain>(HashKey{}, std::vector<std::uint8_t>{}, kBlock), true),
      AgingRule(std::nullopt),
      weights,
      step_time,
      log};
};

struct Damage {
  const char* said;
  std::function<void(World&)> done;
};

const std::vector<Damage>& damages() {
  static const std::vector<Damage> all{
      {"references of block 0", [](World& w) { w.pool().hold(w.running(0).block_table[0]); }},
      {"references of block", [](World& w) { w.running(1).block_table[0] = w.running(0).block_table[0]; }},
      {"block_table.size()", [](World& w) { w.running(0).covered += kBlock; }},
      {"r->num_computed <= r->covered", [](World& w) { w.running(0).num_computed = 1000; }},
      {"promises 6", [](World& w) { w.running(0).reserved_blocks += 2; }},
      {"request 10 awaits no row", [](World& w) { w.running(0).pending_tokens = 3; }},
      {"request 11 is in the wrong list", [](World& w) { w.running(1).phase = Phase::kPrefill; }},
      {"is shared", [](World& w) { w.running(1).slot = w.running(0).slot; }},
      {"request 12 queued outside its band", [](World& w) { w.waiting(0).band = 1; }},
      {"queued requests have 19 tokens", [](World& w) { w.waiting(1).tokens.push_back(1); }},
      {"request 13 is listed for another block", [](World& w) { ++w.waiting(1).num_matched; }},
      {"promises and quotas exceed what is available",
       [](World& w) {
         std::vector<BlockId> taken(static_cast<std::size_t>(w.pool().num_available()));
         EXPECT(w.pool().try_take(taken));
         w.running(0).block_table.insert(w.running(0).block_table.end(), taken.begin(), taken.end());
         w.running(0).covered += static_cast<std::int32_t>(taken.size()) * kBlock;
         w.running(0).reserved_blocks += static_cast<std::int32_t>(taken.size());
       }},
  };
  return all;
}

TEST(what_is_sound_is_not_complained_about) {
  const World world;
  EXPECT(world.scheduler.stats().running == 2 && world.scheduler.stats().waiting == 2);
  EXPECT(world.complaint().empty());
}

TEST(each_kind_of_damage_is_named) {
  for (const Damage& damage : damages()) {
    World world;
    damage.done(world);
    const std::string complaint = world.complaint();
    if (complaint.find(damage.said) == std::string::npos)
      std::cerr << damage.said << " <> " << complaint << '\n';
    EXPECT(complaint.find(damage.said) != std::string::npos);
    EXPECT(complaint.starts_with("csrc/"));  // and says where to look
  }
}

}  // namespace
}  // namespace airi

RUN_TESTS()
