// The runtime without Python: what a step costs in allocations, and what it refuses.

#include <cstdint>
#include <utility>

#include "counting_new.h"
#include "simulated_runner.h"
#include "testing.h"

namespace airi {
namespace {

ModelConfig model_of(std::int32_t seqs) {
  ModelConfig model;
  model.block_size = 16;
  model.bytes_per_block = kGranuleBytes;
  model.max_model_len = 512;
  model.max_num_seqs = seqs;
  model.max_batch_tokens = 4096;
  return model;
}

RuntimeConfig config_of(std::int64_t blocks) {
  RuntimeConfig config;
  config.arena_bytes = blocks * kGranuleBytes;
  config.slab_bytes = 16 * kGranuleBytes;
  config.decision_records = 1000;
  config.kv_event_records = 1000;
  return config;
}

RequestSpec request(std::int64_t id, std::int32_t prompt, std::int32_t max_new) {
  RequestSpec spec;
  spec.id = RequestId{id};
  spec.tenant = TenantId{id % 5};
  spec.tokens.assign(static_cast<std::size_t>(prompt), static_cast<std::int32_t>(id + 1));
  spec.max_new_tokens = max_new;
  return spec;
}

void expect_decodes_to_allocate_nothing(std::int32_t steps_ahead) {
  RuntimeConfig config = config_of(128 * 32);
  config.steps_ahead = steps_ahead;
  testing::SimulatedRunner runner(config, {model_of(128)});
  for (std::int64_t i = 0; i < 128; ++i) {
    EXPECT(runner.runtime().submit(request(i, 20, 300)) == Admit::kAccepted);
  }
  for (std::int64_t now = 0; now < 4; ++now) runner.step(TimePoint{now});
  const std::int64_t before = testing::num_allocations;
  for (std::int64_t now = 4; now < 250; ++now) {
    const auto info = runner.step(TimePoint{now});
    EXPECT(info && info->num_decodes == 128);
  }
  EXPECT(testing::num_allocations == before);
  EXPECT(runner.runtime().decisions().next() > 0 && runner.runtime().kv_events().next() > 0);
}

TEST(a_decode_step_allocates_nothing_whatever_the_number_of_rows) { expect_decodes_to_allocate_nothing(0); }

TEST(a_decode_step_that_is_planned_ahead_allocates_nothing) { expect_decodes_to_allocate_nothing(1); }

TEST(a_decode_step_beside_a_deep_queue_in_order_of_prefixes_allocates_nothing) {
  RuntimeConfig config = config_of(128 * 32);
  config.locality_quantum_tokens = 1000;
  testing::SimulatedRunner runner(config, {model_of(128)});
  for (std::int64_t i = 0; i < 500; ++i) {
    EXPECT(runner.runtime().submit(request(i, 40, 300)) == Admit::kAccepted);
  }
  for (std::int64_t now = 0; now < 4; ++now) runner.step(TimePoint{now});
  const std::int64_t before = testing::num_allocations;
  for (std::int64_t now = 4; now < 250; ++now) {
    const auto info = runner.step(TimePoint{now});
    EXPECT(info && info->num_decodes == 128);
  }
  EXPECT(testing::num_allocations == before);
}

TEST(a_prompt_is_admitted_with_a_handful_of_allocations) {
  testing::SimulatedRunner runner(config_of(4096), {model_of(64)});
  EXPECT(runner.runtime().submit(request(0, 400, 4)) == Admit::kAccepted);
  while (runner.runtime().has_work()) runner.step(TimePoint{0});
  RequestSpec spec = request(1, 400, 4);
  const std::int64_t before = testing::num_allocations;
  EXPECT(runner.runtime().submit(std::move(spec)) == Admit::kAccepted);
  runner.step(TimePoint{1});
  EXPECT(testing::num_allocations - before <= 20);
}

TEST(models_get_disjoint_blocks_of_one_arena) {
  ModelConfig small = model_of(4);
  ModelConfig large = model_of(4);
  small.share = 0.25;
  large.bytes_per_block = 3 * kGranuleBytes;
  testing::SimulatedRunner runner(config_of(64 * 16), {small, large});
  const auto stats = runner.runtime().stats();
  EXPECT(stats[0].capacity == 16 * 16);
  EXPECT(stats[1].capacity == 48 * 5);  // a slab of 16 granules holds five blocks of three
}

TEST(settings_that_cannot_work_are_refused) {
  const auto refused = [](auto change) {
    RuntimeConfig config = config_of(64);
    ModelConfig model = model_of(4);
    change(config, model);
    EXPECT_THROW(testing::SimulatedRunner(config, {model}), InvalidArgument);
  };
  refused([](RuntimeConfig& c, ModelConfig&) { c.slab_bytes = 5000; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.num_bands = 0; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.max_queued = 0; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.aging_us = 0; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.quantum_us = 0; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.service.decode = -1; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.bypass_tokens = -1; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.decision_records = -1; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.kv_event_records = kMaxRingRecords + 1; });
  refused([](RuntimeConfig& c, ModelConfig&) { c.steps_ahead = 2; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.block_size = 0; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.bytes_per_block = 100; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.max_model_len = 1; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.max_num_seqs = 0; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.max_batch_tokens = 0; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.num_slabs = 5; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.share = 1.5; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.share = 0.1; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.num_slabs = 1, m.share = 0.5; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.device_weight = 0; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.watermark = 1.0; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.max_prefill_chunk = 15; });
  refused([](RuntimeConfig&, ModelConfig& m) { m.whole_prompts = true; });
}

}  // namespace
}  // namespace airi

RUN_TESTS()
