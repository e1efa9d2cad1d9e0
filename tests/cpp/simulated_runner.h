#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime.h"
#include "step_arrays.h"

namespace airi::testing {

// A runtime with the buffers it writes into, and a runner that answers every row with one token. Where the
// runtime plans ahead, one step is always in flight between calls.
class SimulatedRunner {
 public:
  SimulatedRunner(const RuntimeConfig& config, const std::vector<ModelConfig>& models)
      : steps_ahead_(static_cast<std::size_t>(config.steps_ahead)), arrays_(2, StepArrays(models, kOps)) {
    in_flight_.reserve(2);
    const std::size_t rows = arrays_[0].ids.size();
    sampled_.reserve(rows);
    counts_.reserve(rows);
    status_.reserve(rows);
    runtime_ =
        std::make_unique<Runtime>(config, models, std::vector{arrays_[0].buffers(), arrays_[1].buffers()});
  }

  Runtime& runtime() { return *runtime_; }
  // What a step brought; the next one of its set writes over it.
  [[nodiscard]] const StepArrays& arrays(const StepInfo& info) const {
    return arrays_[static_cast<std::size_t>(info.buffer)];
  }

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
  static constexpr std::size_t kOps = 64;

  template <class Failing>
  void answer(const StepInfo& info, Micros device_time, std::int32_t token, Failing failing) {
    const StepArrays& arrays = arrays_[static_cast<std::size_t>(info.buffer)];
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

  std::size_t steps_ahead_;
  std::vector<StepInfo> in_flight_;
  std::vector<StepArrays> arrays_;
  std::unique_ptr<Runtime> runtime_;
  std::vector<std::int32_t> sampled_;
  std::vector<std::int32_t> counts_;
  std::vector<std::uint8_t> status_;
};

}  // namespace airi::testing
