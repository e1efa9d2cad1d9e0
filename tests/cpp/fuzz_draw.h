#pragma once

#include <vector>

#include "fuzz_bytes.h"
#include "runtime.h"

namespace airi::testing {

inline constexpr std::int32_t kNumIds = 64;
inline constexpr std::int32_t kNumTenants = 4;
inline constexpr std::int32_t kMostBlockSize = 5;

// What a runtime is made of: two to four small, tight models that fit its arena together.
struct Setting {
  RuntimeConfig config;
  std::vector<ModelConfig> models;
  std::size_t num_sets = 2;  // of step buffers
  std::size_t num_ops = 16;  // memory operations that each holds
};

Setting draw_setting(Bytes& bytes);

// A model whose slabs move, for an arena with slabs of so many granules. Not always one that can be added.
ModelConfig draw_elastic_model(Bytes& bytes, const RuntimeConfig& config);

// A request to one of `num_models`. Few tokens and extras: prefixes meet, and diverge late.
RequestSpec draw_request(Bytes& bytes, const RuntimeConfig& config, std::size_t num_models, TimePoint now);

// Steps that some model could have run.
void teach(Bytes& bytes, StepTimeModel& model);

}  // namespace airi::testing
