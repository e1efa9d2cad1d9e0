#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime.h"

namespace airi::testing {

// A runtime with the buffers it writes into, and a runner that answers every row with one token.
class SimulatedRunner {
 public:
  SimulatedRunner(const RuntimeConfig& config, const std::vector<ModelConfig>& models) {
    std::size_t rows = 1;
    std::size_t tokens = 1;
    std::size_t deltas = 1;
    for (const ModelConfig& model : models) {
      check_config(model);
      rows = std::max(rows, static_cast<std::size_t>(model.max_num_seqs));
      tokens = std::max({tokens, rows, static_cast<std::size_t>(model.max_batch_tokens)});
      deltas = std::max(deltas, static_cast<std::size_t>(model.max_deltas()));
    }
    for (Arrays& arrays : arrays_) {
      arrays.ids.resize(rows);
      arrays.flags.resize(rows);
      for (auto* v : {&arrays.slots, &arrays.seq_lens, &arrays.draw}) v->resize(rows);
      arrays.query_start.resize(rows + 1);
      for (auto* v : {&arrays.tokens, &arrays.positions}) v->resize(tokens);
      arrays.deltas.resize(3 * deltas);
    }
    sampled_.reserve(rows);
    counts_.reserve(rows);
    status_.reserve(rows);
    runtime_ =
        std::make_unique<Runtime>(config, models, std::vector{arrays_[0].buffers(), arrays_[1].buffers()});
  }

  Runtime& runtime() { return *runtime_; }

  // Plans and commits one step, if there is one. Rows for which failing(row) holds end in NaN.
  template <class Failing>
  std::optional<StepInfo> step(TimePoint now, Micros device_time, std::int32_t token, Failing failing) {
    const auto info = runtime_->step(now);
    if (!info) return info;
    const Arrays& arrays = arrays_[static_cast<std::size_t>(info->buffer)];
    sampled_.clear();
    counts_.clear();
    status_.clear();
    for (std::size_t row = 0; row < static_cast<std::size_t>(info->num_rows); ++row) {
      const bool samples = (arrays.flags[row] & kRowSample) != 0;
      counts_.push_back(samples ? 1 : 0);
      status_.push_back(static_cast<std::uint8_t>(failing(row) ? RowStatus::kNan : RowStatus::kOk));
      if (samples) sampled_.push_back(token);
    }
    runtime_->commit(info->step_id, sampled_, counts_, status_, device_time);
    return info;
  }

  std::optional<StepInfo> step(TimePoint now) {
    return step(now, 1, 7, [](std::size_t) { return false; });
  }

 private:
  struct Arrays {
    std::vector<std::int64_t> ids;
    std::vector<std::uint8_t> flags;
    std::vector<std::int32_t> slots, query_start, seq_lens, draw, tokens, positions, deltas;

    StepBuffers buffers() {
      return {ids, slots, query_start, seq_lens, flags, draw, tokens, positions, deltas};
    }
  };

  Arrays arrays_[2];
  std::unique_ptr<Runtime> runtime_;
  std::vector<std::int32_t> sampled_;
  std::vector<std::int32_t> counts_;
  std::vector<std::uint8_t> status_;
};

}  // namespace airi::testing
