#include "runtime_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "base/broadcast_ring.h"
#include "base/check.h"
#include "base/ids.h"

namespace airi {
namespace {

// Counts of tokens stay below this, so that rounding them up to blocks fits 32 bits.
constexpr std::int32_t kMaxTokens = 1 << 30;
constexpr std::int32_t kMaxSeqs = 1 << 20;

template <class Number>
void require(bool holds, const char* name, Number value, const char* accepted) {
  if (holds) return;
  throw InvalidArgument(std::string(name) + " must be " + accepted + ", got " + std::to_string(value));
}

bool is_ring_size(std::int64_t records) { return records >= 0 && records <= kMaxRingRecords; }

void require_size(std::size_t size, std::int64_t at_least, const char* name) {
  if (static_cast<std::int64_t>(size) >= at_least) return;
  throw InvalidArgument(std::string("buffer ") + name + " must hold at least " + std::to_string(at_least) +
                        ", got " + std::to_string(size));
}

// Of those that have a number of their own; nothing for one that shares what is left.
std::optional<std::int32_t> slabs_wanted(const ModelConfig& model, std::int32_t num_slabs) {
  if (model.num_slabs) return model.num_slabs;
  if (!model.share) return std::nullopt;
  // 0.57 * 100 is a little below 57.
  return static_cast<std::int32_t>(std::floor(*model.share * num_slabs + 1e-9));
}

void check_tiers(const TierConfig& tiers) {
  constexpr std::int64_t kMostBytes = std::int64_t{1} << 50;
  const auto fits = [](std::int64_t bytes) { return bytes >= 0 && bytes <= kMostBytes; };
  require(fits(tiers.host_bytes), "host_bytes", tiers.host_bytes, "between 0 and 2^50");
  require(fits(tiers.disk_bytes), "disk_bytes", tiers.disk_bytes, "between 0 and 2^50");
  require(tiers.disk_bytes == 0 || tiers.host_bytes > 0, "disk_bytes", tiers.disk_bytes,
          "0 without host_bytes");
  require(tiers.store_on_reuse >= 0, "store_on_reuse", tiers.store_on_reuse, "at least 0");
  const Micros timeout = tiers.load_timeout_us;
  require(timeout > 0 && timeout <= kMaxMicros, "load_timeout_us", timeout, "between 1 and 2^53");
  const auto is_rate = [](double rate) { return rate >= 0 && rate <= 1e9; };
  require(is_rate(tiers.host_bytes_per_us), "host_bytes_per_us", tiers.host_bytes_per_us, "in [0, 1e9]");
  require(is_rate(tiers.disk_bytes_per_us), "disk_bytes_per_us", tiers.disk_bytes_per_us, "in [0, 1e9]");
}

// Takes `count` slabs of those left.
SlabLimits fixed_limits(std::size_t model, std::int32_t count, std::int32_t num_slabs, std::int64_t& left) {
  const std::string who = "model " + std::to_string(model);
  if (count < 1) throw InvalidArgument(who + " gets no slab of the arena");
  if (count > left) {
    throw InvalidArgument(who + " wants " + std::to_string(count) + " slabs, " + std::to_string(left) +
                          " of " + std::to_string(num_slabs) + " are free");
  }
  left -= count;
  return {.min = count, .max = count};
}

void check_whole_prompts(const ModelConfig& model) {
  const std::int32_t longest = model.max_model_len;
  require(model.block_size >= longest, "block_size", model.block_size,
          "at least max_model_len where prompts are computed whole");
  require(model.max_batch_tokens >= longest, "max_batch_tokens", model.max_batch_tokens,
          "at least max_model_len where prompts are computed whole");
  require(!model.max_prefill_chunk || *model.max_prefill_chunk >= longest, "max_prefill_chunk",
          model.max_prefill_chunk.value_or(0), "at least max_model_len where prompts are computed whole");
  require(!model.enable_prefix_caching, "enable_prefix_caching", 1, "0 where prompts are computed whole");
}

}  // namespace

std::int64_t ModelConfig::max_deltas() const noexcept {
  // Growth of decodes and prefills, and the whole table of one request that is admitted.
  return 2 * std::int64_t{max_num_seqs} + ceil_div(max_batch_tokens, block_size) +
         ceil_div(max_model_len, block_size) + 1;
}

void check_config(const RuntimeConfig& config) {
  require(config.max_queued >= 1, "max_queued", config.max_queued, "at least 1");
  require(config.num_bands >= 1 && config.num_bands <= 64, "num_bands", config.num_bands, "between 1 and 64");
  if (config.aging_us) {
    const Micros aging = *config.aging_us;
    require(aging > 0 && aging <= kMaxMicros, "aging_us", aging, "between 1 and 2^53");
  }
  const ServiceWeights& service = config.service;
  require(service.prompt >= 0 && service.prompt <= 1024, "w_prompt", service.prompt, "in [0, 1024]");
  require(service.decode >= 0 && service.decode <= 1024, "w_decode", service.decode, "in [0, 1024]");
  require(service.hit >= 0 && service.hit <= 1024, "w_hit", service.hit, "in [0, 1024]");
  require(config.bypass_tokens >= 0, "bypass_tokens", config.bypass_tokens, "at least 0");
  if (config.fairness_gap_tokens) {
    const std::int64_t gap = *config.fairness_gap_tokens;
    require(gap >= 1 && gap <= std::int64_t{1} << 40, "fairness_gap_tokens", gap, "between 1 and 2^40");
  }
  if (config.locality_quantum_tokens) {
    const std::int64_t quantum = *config.locality_quantum_tokens;
    require(quantum >= 1 && quantum <= std::int64_t{1} << 40, "locality_quantum_tokens", quantum,
            "between 1 and 2^40");
  }
  require(config.dedupe_steps >= 0 && config.dedupe_steps <= 1 << 20, "dedupe_steps", config.dedupe_steps,
          "in [0, 2^20]");
  require(config.max_preemptions >= 0, "max_preemptions", config.max_preemptions, "at least 0");
  require(is_ring_size(config.decision_records), "decision_records", config.decision_records,
          "between 0 and 2^24");
  require(is_ring_size(config.kv_event_records), "kv_event_records", config.kv_event_records,
          "between 0 and 2^24");
  check_tiers(config.tiers);
  require(config.steps_ahead >= 0 && config.steps_ahead <= 1, "steps_ahead", config.steps_ahead, "0 or 1");
}

void check_config(const ModelConfig& model) {
  require(model.block_size >= 1 && model.block_size <= kMaxTokens, "block_size", model.block_size,
          "between 1 and 2^30");
  require(model.max_model_len >= 2 && model.max_model_len <= kMaxTokens, "max_model_len", model.max_model_len,
          "between 2 and 2^30");
  require(model.max_num_seqs >= 1 && model.max_num_seqs <= kMaxSeqs, "max_num_seqs", model.max_num_seqs,
          "between 1 and 2^20");
  require(model.max_batch_tokens >= 1 && model.max_batch_tokens <= kMaxTokens, "max_batch_tokens",
          model.max_batch_tokens, "between 1 and 2^30");
  if ((model.num_slabs ? 1 : 0) + (model.share ? 1 : 0) + (model.is_elastic() ? 1 : 0) > 1) {
    throw InvalidArgument("num_slabs, share, and min_slabs with max_slabs exclude each other");
  }
  if (model.is_elastic()) {
    const std::int32_t min = model.min_slabs.value_or(0);
    require(min >= 0, "min_slabs", min, "at least 0");
    const std::int32_t max = model.max_slabs.value_or(std::max(min, 1));
    require(max >= std::max(min, 1), "max_slabs", max, "at least 1 and min_slabs");
  }
  require(model.weight_slabs >= 0, "weight_slabs", model.weight_slabs, "at least 0");
  if (model.num_slabs) require(*model.num_slabs >= 1, "num_slabs", *model.num_slabs, "at least 1");
  if (model.share) {
    require(*model.share > 0.0 && *model.share <= 1.0, "share", *model.share, "in (0, 1]");
  }
  require(model.watermark >= 0.0 && model.watermark < 1.0, "watermark", model.watermark, "in [0, 1)");
  require(model.itl_credit >= 0 && model.itl_credit <= 1, "itl_credit", model.itl_credit, "in [0, 1]");
  for (const SloTarget& target : model.targets) {
    for (const auto& [name, micros] : {std::pair("ttft_us", target.ttft), std::pair("itl_us", target.itl)}) {
      if (micros) require(*micros >= 0 && *micros <= kMaxMicros, name, *micros, "between 0 and 2^53");
    }
  }
  if (model.max_prefill_chunk) {
    require(*model.max_prefill_chunk >= model.block_size, "max_prefill_chunk", *model.max_prefill_chunk,
            "at least block_size");
  }
  if (model.whole_prompts) check_whole_prompts(model);
}

void check_targets(const ModelConfig& model, const RuntimeConfig& config) {
  const auto size = static_cast<std::int64_t>(model.targets.size());
  require(size <= config.num_bands, "len(targets)", size, "at most num_bands");
}

void check_buffers(const StepBuffers& buffers, const std::vector<ModelConfig>& models) {
  std::int64_t rows = 0;
  std::int64_t tokens = 0;
  std::int64_t deltas = 0;
  std::int64_t ops = 0;
  for (const ModelConfig& model : models) {
    if (model.is_elastic()) ops = 1;
    rows = std::max<std::int64_t>(rows, model.max_num_seqs);
    tokens = std::max<std::int64_t>({tokens, model.max_batch_tokens, model.max_num_seqs});
    deltas = std::max(deltas, model.max_deltas());
  }
  require_size(buffers.request_ids.size(), rows, "request_ids");
  require_size(buffers.slots.size(), rows, "slots");
  require_size(buffers.query_start.size(), rows + 1, "query_start");
  require_size(buffers.seq_lens.size(), rows, "seq_lens");
  require_size(buffers.row_flags.size(), rows, "row_flags");
  require_size(buffers.draw_index.size(), rows, "draw_index");
  require_size(buffers.tokens.size(), tokens, "tokens");
  require_size(buffers.positions.size(), tokens, "positions");
  require_size(buffers.deltas.size() / 3, deltas, "deltas");
  require_size(buffers.ops.size() / 5, ops, "ops");
}

void check_moment(const char* name, TimePoint moment) {
  if (moment >= TimePoint{-kMaxMicros} && moment <= TimePoint{kMaxMicros}) return;
  throw InvalidArgument(std::string(name) + " must lie in [-2^53, 2^53], got " +
                        std::to_string(static_cast<std::int64_t>(moment)));
}

std::vector<SlabLimits> slab_limits(const std::vector<ModelConfig>& models, std::int32_t num_slabs) {
  std::vector<SlabLimits> limits(models.size());
  std::int64_t left = num_slabs;
  for (const ModelConfig& model : models) left -= model.weight_slabs + model.min_slabs.value_or(0);
  std::int64_t unspecified = 0;
  for (std::size_t i = 0; i < models.size(); ++i) {
    if (models[i].is_elastic()) {
      limits[i] = {.min = models[i].min_slabs.value_or(0),
                   .max = std::min(models[i].max_slabs.value_or(num_slabs), num_slabs),
                   .weight = models[i].slab_weight};
    } else if (const auto wanted = slabs_wanted(models[i], num_slabs)) {
      limits[i] = fixed_limits(i, *wanted, num_slabs, left);
    } else {
      ++unspecified;
    }
  }
  for (std::size_t i = 0; i < models.size(); ++i) {
    if (limits[i].max > 0) continue;
    limits[i] = fixed_limits(i, static_cast<std::int32_t>(left / std::max<std::int64_t>(unspecified--, 1)),
                             num_slabs, left);
  }
  return limits;
}

}  // namespace airi
