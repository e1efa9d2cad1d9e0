#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime.h"

namespace airi::testing {

// A runtime with the buffers it writes into, and a runner that answers every row with one token. Where the
// runtime plans ahead, one step is always in flight between calls.
class SimulatedRunner {
 public:
  SimulatedRunner(const RuntimeConfig& config, const std::vector<ModelConfig>& models)
      : steps_ahead_(static_cast<std::size_t>(config.steps_ahead)) {
    in_flight_.reserve(2);
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
      arrays.ops.resize(5 * kOps);
    }
    sampled_.reserve(rows);
    counts_.reserve(rows);
    status_.reserve(rows);
    runtime_ =
        std::make_unique<Runtime>(config, models, std::vector{arrays_[0].buffers(), arrays_[1].buffers()});
  }

  Runtime& runtime() { return *runtime_; }

  // Plans a step, if there is one, and commits the oldest beyond those that may be in flight, or, where there
  // is none to plan, the oldest. Rows for which failing(row) holds end in NaN.
  template <class Failing>
  std::optional<StepInfo> step(TimePoint now, Micros device_time, std::int32_t token, Failing failing) {
    const auto planned = runtime_->step(now);
    if (planned) in_flight_.push_back(*planned);
    if (in_flight_.size() > steps_ahead_ || (!planned && !in_flight_.empty())) {
      const StepInfo oldest = in_flight_.front();
      in_flight_.erase(in_flight_.begin());
      answer(oldest, device_time, token, failing);
    }
    return planned;
  }

  std::optional<StepInfo> step(TimePoint now) {
    return step(now, 1, 7, [](std::size_t) { return false; });
  }

 private:
  template <class Failing>
  void answer(const StepInfo& info, Micros device_time, std::int32_t token, Failing failing) {
    const Arrays& arrays = arrays_[static_cast<std::size_t>(info.buffer)];
    sampled_.clear();
    counts_.clear();
    status_.clear();
    for (std::size_t row = 0; row < static_cast<std::size_t>(info.num_rows); ++row) {
      const bool samples = (arrays.flags[row] & kRowSample) != 0;
      counts_.push_back(samples ? 1 : 0);
      status_.push_back(static_cast<std::uint8_t>(failing(row) ? RowStatus::kNan : RowStatus::kOk));
      if (samples) sampled_.push_back(token);
    }
    runtime_->commit(info.step_id, sampled_, counts_, status_, device_time);
  }

  static constexpr std::size_t kOps = 64;

  struct Arrays {
    std::vector<std::int64_t> ids, ops;
    std::vector<std::uint8_t> flags;
    std::vector<std::int32_t> slots, query_start, seq_lens, draw, tokens, positions, deltas;

    StepBuffers buffers() {
      return {ids, slots, query_start, seq_lens, flags, draw, tokens, positions, deltas, ops};
    }
  };

  std::size_t steps_ahead_;
  std::vector<StepInfo> in_flight_;
  Arrays arrays_[2];
  std::unique_ptr<Runtime> runtime_;
  std::vector<std::int32_t> sampled_;
  std::vector<std::int32_t> counts_;
  std::vector<std::uint8_t> status_;
};

}  // namespace airi::testing
