#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include "base/time.h"
#include "sched/step_time.h"

namespace airi {

// The decodes of one band that want a token of the next step.
struct DecodeLoad {
  std::int64_t count = 0;
  std::int64_t context = 0;      // sum of the lengths that they attend to
  std::optional<TimePoint> due;  // the earliest of their next tokens; none: nothing presses
};

// A prompt, or what is left of it.
struct PrefillLoad {
  std::int32_t context = 0;    // tokens before the first uncomputed one
  std::int32_t remaining = 0;  // at least 1
  std::int32_t band = 0;
  std::optional<TimePoint> due;  // of its first token
};

// The work of `prefills` for their first `tokens` tokens, which fill one after the other; what exceeds them
// belongs to one more prompt, which is at its start.
[[nodiscard]] StepWork with_prefills(StepWork work, std::span<const PrefillLoad> prefills,
                                     std::int64_t tokens) noexcept;

// The most prefill tokens that a step with `decodes` takes within `micros`: `most`, or the largest multiple
// of `tile` below it. Exact, for estimates are monotone. O(prefills * log(most)).
[[nodiscard]] std::int32_t largest_prefill(const StepTimeModel& model, const StepWork& decodes,
                                           std::span<const PrefillLoad> prefills, double micros,
                                           std::int32_t tile, std::int32_t most) noexcept;

// The longest context with which a decode that runs alone takes at most `micros`, up to `most`; none: no
// such.
[[nodiscard]] std::optional<std::int32_t> largest_context(const StepTimeModel& model, double micros,
                                                          std::int32_t most) noexcept;

// What a budget is multiplied by: less after a window of tokens of which more than one in a hundred came
// late, a little more after any other.
//
// Thread safety: none.
// Invariant: 0.1 <= value() <= 1.
class BudgetGain {
 public:
  // A token with a deadline was emitted.
  void note(bool is_late) noexcept;
  [[nodiscard]] double value() const noexcept { return value_; }

 private:
  double value_ = 1;
  std::int32_t tokens_ = 0;  // of this window
  std::int32_t late_ = 0;
};

// How many prefill tokens the next step of one model takes: what the tightest decode can afford. Knows no
// request, no block and no tenant.
//
// Where that leaves prompts without progress until the first token of one of them is at stake, or for many
// steps, decodes of the largest bands sit out a step, if this lets the others keep their deadlines; else a
// few tokens are forced in.
//
// Thread safety: none.
// Invariant: of two steps in a row at most one has decodes sitting out, and never all of them do; no more
// than kPatience steps in a row give less than the least chunk to prefills that want it.
class SloBudget {
 public:
  static constexpr std::int32_t kPatience = 16;

  struct Limits {
    std::int32_t tile = 16;       // tokens come in multiples of it
    std::int32_t max_tokens = 0;  // of a step
  };

  struct Grant {
    std::int32_t prefill_tokens = 0;
    double micros = std::numeric_limits<double>::infinity();  // what the step may take
    std::optional<std::int32_t> resting_from;                 // decodes of this band and larger ones sit out
  };

  explicit SloBudget(const Limits& limits) noexcept;

  // Decides for a step that starts at `start`. `bands` are the decodes by band; `prefills` run, in order of
  // decision; `waiting` is the next to be admitted, if it can be.
  [[nodiscard]] Grant decide(const StepTimeModel& model, TimePoint start, std::span<const DecodeLoad> bands,
                             std::span<const PrefillLoad> prefills,
                             const std::optional<PrefillLoad>& waiting) noexcept;

  [[nodiscard]] BudgetGain& gain() noexcept { return gain_; }
  [[nodiscard]] const BudgetGain& gain() const noexcept { return gain_; }
  // Below this a step counts as one that starves prefills.
  [[nodiscard]] std::int32_t least_chunk() const noexcept { return least_chunk_; }

  // True iff `prefill`, started at `start` and alone on the device, has its first token in time.
  [[nodiscard]] static bool is_feasible(const StepTimeModel& model, TimePoint start,
                                        const PrefillLoad& prefill) noexcept;

 private:
  [[nodiscard]] Grant within(const StepTimeModel& model, TimePoint start, std::span<const DecodeLoad> bands,
                             std::span<const PrefillLoad> prefills) const noexcept;
  [[nodiscard]] Grant relieve(const StepTimeModel& model, TimePoint start, std::span<const DecodeLoad> bands,
                              std::span<const PrefillLoad> prefills, std::int32_t pressing_band,
                              const Grant& tight) noexcept;
  [[nodiscard]] std::optional<std::int32_t> pressing_band(
      const StepTimeModel& model, TimePoint start, double step, std::span<const PrefillLoad> prefills,
      const std::optional<PrefillLoad>& waiting) const noexcept;

  // Immutable after construction.
  Limits limits_;
  std::int32_t least_chunk_;

  BudgetGain gain_;
  std::int32_t starved_ = 0;  // steps in a row that gave prefills less than the least chunk
  bool has_rested_ = false;   // decodes sat out the step before
};

}  // namespace airi
