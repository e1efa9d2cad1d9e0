#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/time.h"
#include "kv/hash_chain.h"
#include "kv/slab_arena.h"
#include "sched/admission.h"
#include "sched/model_scheduler.h"
#include "sched/slo_target.h"
#include "sched/step_writer.h"

namespace airi {

// One model of a device.
struct ModelConfig {
  std::int32_t block_size = 16;
  std::int64_t bytes_per_block = 0;  // a multiple of the granule
  std::int32_t max_model_len = 0;    // prompt and generated tokens
  std::int32_t max_num_seqs = 0;     // slots
  std::int32_t max_batch_tokens = 0;
  std::optional<std::int32_t> num_slabs;  // or
  std::optional<double> share;            // of the arena; with neither: an equal part of the rest
  // With either, slabs move: never fewer than min (0), while its requests need them, nor more than max (all).
  std::optional<std::int32_t> min_slabs;
  std::optional<std::int32_t> max_slabs;
  double slab_weight = 1.0;       // its part of slabs that several models need
  std::int32_t weight_slabs = 0;  // adjacent slabs that hold its weights, lent while it sleeps
  double device_weight = 1.0;
  std::vector<std::uint8_t> hash_seed;  // names model, KV dtype and layout
  AdmissionPolicy admission = AdmissionPolicy::kNoEvict;
  double watermark = 0.01;
  bool enable_prefix_caching = true;
  std::optional<std::int32_t> max_prefill_chunk;  // of one request per step
  // A prompt is computed in one step or not begun, as its tokens look at those behind them. It is one block,
  // and is not shared.
  bool whole_prompts = false;
  std::vector<SloTarget> targets;  // by class; those behind the last have none
  double itl_credit = 0;  // targets between tokens that a stream may save by early ones, for a late one

  // How many deltas a step of this model may bring: what StepBuffers must hold at least.
  [[nodiscard]] std::int64_t max_deltas() const noexcept;
  [[nodiscard]] bool is_elastic() const noexcept { return min_slabs || max_slabs; }
};

// Where blocks have copies beside the device, shared by the models of the start as its slabs are. One that
// comes later gets what those that are gone had.
struct TierConfig {
  std::int64_t host_bytes = 0;
  std::int64_t disk_bytes = 0;  // needs a host
  std::int32_t store_on_reuse =
      2;  // of a block: which one copies it to the host, 0 none; evictions always do
  Micros load_timeout_us = 1'000'000;
  double host_bytes_per_us = 8'000;  // until measured; 0: never loads
  double disk_bytes_per_us = 1'000;
};

// What all models of a device share.
struct RuntimeConfig {
  std::int64_t arena_bytes = 0;
  std::int64_t slab_bytes = 0;
  HashKey hash_key{};
  std::int64_t max_queued = 4096;
  std::int32_t num_bands = 1;
  std::optional<Micros> aging_us;  // nothing: bands are strict
  ServiceWeights service;
  std::int64_t bypass_tokens = 0;
  // A head that does not fit preempts tenants served this much more, per weight, than its own,
  // however often: max_preemptions does not count here.
  std::optional<std::int64_t> fairness_gap_tokens;  // nothing: it waits
  // Cached prefixes order the queue: a tenant may be served this much ahead of the others for them.
  std::optional<std::int64_t> locality_quantum_tokens;  // nothing: they do not
  // A request waits for a prefix that a running one computes, for this many steps at most in all.
  std::int32_t dedupe_steps = 0;
  std::int32_t max_preemptions = 3;
  // How many steps may be uncommitted when another one is planned: 1 plans a step while the one before runs.
  std::int32_t steps_ahead = 0;
  // How many of the last records readers find: 0 keeps none. At most 2^24.
  std::int64_t decision_records = 0;
  std::int64_t kv_event_records = 0;
  Micros quantum_us = 10'000;
  Micros min_residency_us = 0;
  // Device time that a model which would else be late may owe the others. 0: none runs before its turn.
  Micros max_borrow_us = 0;
  Micros slab_hysteresis_us = 1'000'000;  // how long a slab stays where it went
  TierConfig tiers;
};

// Each throws InvalidArgument naming the first setting that cannot work, with its value.
void check_config(const RuntimeConfig& config);
void check_config(const ModelConfig& model);
void check_targets(const ModelConfig& model, const RuntimeConfig& config);
void check_buffers(const StepBuffers& buffers, const std::vector<ModelConfig>& models);
// `name` is what the message calls it.
void check_moment(const char* name, TimePoint moment);

// How many slabs each model may count on and have, in an arena of `num_slabs`. Weights and minima come first;
// then, in their order, models that name a number or a share; then equal parts of what is left to those that
// name nothing. Throws InvalidArgument where they do not suffice or a model would get none.
[[nodiscard]] std::vector<SlabLimits> slab_limits(const std::vector<ModelConfig>& models,
                                                  std::int32_t num_slabs);

}  // namespace airi
