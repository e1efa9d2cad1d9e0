#include <cstdint>
#include <string>
#include <vector>

#include "kv/slab_arena.h"
#include "random.h"
#include "sim/simulator.h"
#include "testing.h"

namespace airi {
namespace {

constexpr std::int32_t kBlocks = 48;

SimulatorConfig small_fleet(const std::string& router, std::int32_t threads, std::int32_t steps_ahead) {
  SimulatorConfig config;
  config.runtime.arena_bytes = config.runtime.slab_bytes = kBlocks * std::int64_t{kGranuleBytes};
  config.runtime.max_queued = 40;
  config.runtime.steps_ahead = steps_ahead;
  config.model.block_size = 16;
  config.model.bytes_per_block = kGranuleBytes;
  config.model.max_model_len = 16 * kBlocks;
  config.model.max_num_seqs = 6;
  config.model.max_batch_tokens = 64;
  config.model.admission = AdmissionPolicy::kMaxUtil;
  config.cost.pieces[0] = {.step = 50};
  config.cost.pieces[1] = {.step = 20, .token = 1};
  config.replicas = 5;
  config.router = router;
  config.part_tokens = 32;
  config.keeps_rows = true;
  config.threads = threads;
  return config;
}

// Figures of a run, as far as they tell two runs apart.
std::vector<std::int64_t> play(const SimulatorConfig& config) {
  Simulator simulator(config);
  testing::Random random(7);
  std::vector<std::int64_t> figures;
  std::int64_t arrival = 0;
  for (int batch = 0; batch < 20; ++batch) {
    std::vector<std::int64_t> arrivals, tenants, parts, starts{0};
    std::vector<std::int32_t> bands, inputs, outputs;
    for (int i = 0; i < 30; ++i) {
      arrivals.push_back(arrival += random.below(200));
      tenants.push_back(random.below(3));
      bands.push_back(0);
      for (std::int32_t n = random.below(4); n > 0; --n) parts.push_back(random.below(3));
      starts.push_back(static_cast<std::int64_t>(parts.size()));
      inputs.push_back(random.below(300));
      outputs.push_back(random.below(30));
    }
    simulator.feed({arrivals, tenants, bands, inputs, outputs, starts, parts});
    simulator.check_invariants();
  }
  while (simulator.drain(100'000)) simulator.check_invariants();
  for (const RequestRow& row : simulator.take_rows()) {
    figures.insert(figures.end(), {row.request_id, row.first_token_us, row.end_us, row.cached_tokens});
  }
  const auto metrics = simulator.metrics();
  std::int64_t refused = 0;
  for (const std::int64_t count : metrics->refused) refused += count;
  EXPECT(metrics->accepted + refused == 600);
  EXPECT(metrics->finished == metrics->accepted);
  EXPECT(static_cast<std::int64_t>(figures.size()) == 4 * metrics->finished);
  figures.push_back(metrics->itl.count());
  figures.push_back(static_cast<std::int64_t>(metrics->ttft.quantile(0.5)));
  figures.push_back(static_cast<std::int64_t>(metrics->timeline.buckets().size()));
  return figures;
}

TEST(figures_do_not_depend_on_the_number_of_threads) {
  for (const std::int32_t ahead : {0, 1}) {
    for (const char* router : {"round_robin", "least_loaded", "prefix", "locality"}) {
      const std::vector<std::int64_t> alone = play(small_fleet(router, 1, ahead));
      for (const std::int32_t threads : {2, 3, 7}) {
        EXPECT(play(small_fleet(router, threads, ahead)) == alone);
      }
    }
  }
}

}  // namespace
}  // namespace airi

RUN_TESTS()
