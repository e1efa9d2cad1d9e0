#include "fuzz_draw.h"

#include <utility>

namespace airi::testing {
namespace {

std::optional<Micros> draw_target(Bytes& bytes) {
  switch (bytes.below(6)) {
    case 0:
      return std::nullopt;
    case 1:
      return bytes.one_in(2) ? kMaxMicros : 0;
    default:
      return Micros{10} * bytes.below(250);
  }
}

void make_whole(ModelConfig& model, std::int32_t more_tokens) {
  model.max_model_len = kMostBlockSize;
  model.block_size = model.max_model_len;
  model.max_batch_tokens = model.max_model_len + more_tokens;
  model.max_prefill_chunk.reset();
  model.enable_prefix_caching = false;
  model.whole_prompts = true;
}

// What is drawn for every model; it has no slabs yet.
ModelConfig draw_model(Bytes& bytes, const RuntimeConfig& config) {
  const auto granules = static_cast<std::int32_t>(config.slab_bytes / kGranuleBytes);
  ModelConfig model;
  model.block_size = 1 + bytes.below(kMostBlockSize);
  model.bytes_per_block = kGranuleBytes * (1 + bytes.below(std::min(granules, 3)));
  model.max_model_len = 8 + bytes.below(40);
  model.max_num_seqs = 1 + bytes.below(6);
  model.max_batch_tokens = 1 + bytes.below(20);
  model.device_weight = 0.5 * (1 + bytes.below(4));
  model.admission = bytes.below(2) == 0 ? AdmissionPolicy::kNoEvict : AdmissionPolicy::kMaxUtil;
  model.watermark = 0.1 * bytes.below(6);
  model.enable_prefix_caching = bytes.below(6) != 0;
  if (bytes.below(3) == 0) model.max_prefill_chunk = model.block_size + bytes.below(4);
  if (bytes.below(6) == 0) make_whole(model, bytes.below(20));
  if (bytes.below(2) == 0) {
    for (std::int32_t i = bytes.below(config.num_bands + 1); i > 0; --i) {
      const auto ttft = draw_target(bytes);
      model.targets.push_back({.ttft = ttft, .itl = draw_target(bytes)});
    }
    model.itl_credit = 0.25 * bytes.below(5);
  }
  return model;
}

// Slabs for about `blocks` blocks.
std::int32_t slabs_for(const ModelConfig& model, const RuntimeConfig& config, std::int32_t blocks) {
  return ceil_div(blocks, static_cast<std::int32_t>(config.slab_bytes / model.bytes_per_block));
}

TierConfig draw_tiers(Bytes& bytes) {
  TierConfig tiers;
  if (bytes.below(3) == 0) return tiers;
  tiers.host_bytes = kGranuleBytes * (1 + bytes.below(80));
  if (bytes.below(2) == 0) tiers.disk_bytes = kGranuleBytes * (1 + bytes.below(120));
  tiers.store_on_reuse = bytes.below(4);
  tiers.load_timeout_us = bytes.below(4) == 0 ? kMaxMicros : 1 + Micros{8} * bytes.below(250);
  if (bytes.below(6) == 0) tiers.host_bytes_per_us = 50.0 * bytes.below(4);
  if (bytes.below(6) == 0) tiers.disk_bytes_per_us = 50.0 * bytes.below(4);
  return tiers;
}

RuntimeConfig draw_config(Bytes& bytes) {
  RuntimeConfig config;
  config.slab_bytes = kGranuleBytes * (1 + bytes.below(6));
  config.max_queued = 1 + bytes.below(40);
  config.num_bands = 1 + bytes.below(4);
  if (bytes.below(2) == 0) config.aging_us = 1 + bytes.below(200);
  config.service = {bytes.below(3), bytes.below(3), bytes.below(2)};
  config.bypass_tokens = bytes.below(60);
  if (bytes.below(3) == 0) config.fairness_gap_tokens = 1 + bytes.below(60);
  if (bytes.below(2) == 0) config.locality_quantum_tokens = 1 + bytes.below(100);
  config.dedupe_steps = bytes.below(5);
  config.max_preemptions = bytes.below(4);
  config.steps_ahead = bytes.below(2);
  if (bytes.below(3) != 0) config.decision_records = std::int64_t{1} << (2 + bytes.below(10));
  if (bytes.below(3) != 0) config.kv_event_records = std::int64_t{1} << (2 + bytes.below(10));
  config.quantum_us = 1 + bytes.below(250);
  config.min_residency_us = bytes.below(100);
  config.max_borrow_us = bytes.below(3) == 0 ? bytes.below(250) : 0;
  config.slab_hysteresis_us = Micros{4} * bytes.below(200);
  config.tiers = draw_tiers(bytes);
  return config;
}

}  // namespace

ModelConfig draw_elastic_model(Bytes& bytes, const RuntimeConfig& config) {
  ModelConfig model = draw_model(bytes, config);
  model.min_slabs = slabs_for(model, config, bytes.below(12));
  if (bytes.below(3) != 0) {
    model.max_slabs = *model.min_slabs + slabs_for(model, config, 1 + bytes.below(30));
  }
  model.slab_weight = 0.25 * (1 + bytes.below(8));
  if (bytes.below(2) == 0) model.weight_slabs = bytes.below(4);
  return model;
}

Setting draw_setting(Bytes& bytes) {
  Setting setting;
  setting.config = draw_config(bytes);
  std::int32_t slabs = 0;
  for (std::int32_t i = 1 + bytes.below(4); i > 0; --i) {
    if (bytes.below(2) == 0) {
      setting.models.push_back(draw_elastic_model(bytes, setting.config));
    } else {
      ModelConfig model = draw_model(bytes, setting.config);
      model.num_slabs = slabs_for(model, setting.config, 4 + bytes.below(20));
      setting.models.push_back(std::move(model));
    }
    const ModelConfig& model = setting.models.back();
    slabs += model.weight_slabs + model.min_slabs.value_or(0) + model.num_slabs.value_or(0);
  }
  slabs += 4 + bytes.below(16);
  setting.config.arena_bytes = slabs * setting.config.slab_bytes;
  setting.num_sets = static_cast<std::size_t>(setting.config.steps_ahead + 1 + bytes.below(2));
  setting.num_ops = static_cast<std::size_t>(16 + bytes.below(40));
  return setting;
}

RequestSpec draw_request(Bytes& bytes, const RuntimeConfig& config, std::size_t num_models, TimePoint now) {
  RequestSpec spec;
  spec.id = RequestId{bytes.below(kNumIds)};
  spec.model = ModelId{bytes.below(static_cast<std::int32_t>(num_models))};
  spec.tenant = TenantId{bytes.below(kNumTenants)};
  spec.band = bytes.below(config.num_bands);
  const std::int32_t family = bytes.below(3);
  spec.tokens.assign(static_cast<std::size_t>(1 + bytes.below(24)), family);
  for (std::int32_t i = bytes.below(6); i > 0; --i) spec.tokens.push_back(bytes.below(2));
  if (bytes.below(6) != 0) spec.max_new_tokens = 1 + bytes.below(12);
  spec.min_new_tokens = bytes.below(3);
  if (bytes.below(2) == 0) spec.stop_ids = {bytes.below(3)};
  spec.arrival = now + (bytes.one_in(4) ? -Micros{bytes.below(250)} : 0);
  if (bytes.below(6) == 0) spec.deadline = now + bytes.below(250);
  while (bytes.one_in(4) && spec.extras.size() < 3) {
    const auto kind = static_cast<ExtraKind>(1 + bytes.below(3));
    const std::int32_t offset = bytes.below(30);
    spec.extras.push_back({kind, offset, {static_cast<std::uint8_t>(bytes.below(2))}});
  }
  spec.compute_all = bytes.below(10) == 9;
  return spec;
}

void teach(Bytes& bytes, StepTimeModel& model) {
  const std::int32_t scale = 1 + bytes.below(20);
  for (int i = 1; i <= 40; ++i) {
    model.observe({.tokens = i, .seqs = i, .decode_context = 10 * i}, 2 * scale + i);
    model.observe({.tokens = 2 * i, .seqs = 1, .prefill_pairs = 2.0 * i * i}, 20 + scale * i);
  }
}

}  // namespace airi::testing
