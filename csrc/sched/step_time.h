#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "sched/ratio_sketch.h"

namespace airi {

// What the time of a step depends on.
struct StepWork {
  std::int64_t tokens = 0;
  std::int64_t seqs = 0;
  std::int64_t decode_context = 0;  // sum of the lengths that decodes attend to
  double prefill_pairs = 0;         // sum over prefill chunks of tokens * (context + tokens / 2)

  // One more token of a stream that attends to `context` tokens.
  void add_decode(std::int64_t context) noexcept {
    ++tokens;
    ++seqs;
    decode_context += context;
  }
  // `count` more tokens of a prompt of which `context` are computed.
  void add_chunk(std::int64_t context, std::int64_t count) noexcept {
    tokens += count;
    ++seqs;
    const auto length = static_cast<double>(count);
    prefill_pairs += length * (static_cast<double>(context) + length / 2);
  }
};

// One linear piece: microseconds per step and per unit of each kind of work.
struct StepTimePiece {
  double step = 0, token = 0, seq = 0, context = 0, pair = 0;

  [[nodiscard]] double micros(const StepWork& work) const noexcept {
    return step + token * static_cast<double>(work.tokens) + seq * static_cast<double>(work.seqs) +
           context * static_cast<double>(work.decode_context) + pair * work.prefill_pairs;
  }
};

// Estimates how long a step takes from how long earlier ones took: the larger of two linear pieces with
// weights that are never negative, one for steps bound by memory, one for steps bound by arithmetic.
//
// Each piece is the weighted least-squares fit, by relative error, of the steps that it came closer to, and
// of those that it put too high; older ones fade. It never looks at a clock, and never moves far for one
// step.
//
// Thread safety: none.
// Invariant: every weight is finite and at least 0, so estimates are monotone in all work.
class StepTimeModel {
 public:
  // Per piece: weights, normal equations, number of samples; then what tells outliers apart, and how steps
  // lay around estimates.
  static constexpr std::size_t kStateSize = 2 * (5 + 5 * 5 + 5 + 1) + 3 + RatioSketch::kBuckets + 1;
  using State = std::array<double, kStateSize>;

  // A finished step. Measurements that are not positive and finite, or work that is negative, are ignored;
  // until both pieces have samples enough also steps that are neither decodes alone nor hold more than a
  // token of some prompt.
  void observe(const StepWork& work, double micros);

  // Microseconds; 0 before the first observation.
  [[nodiscard]] double estimate(const StepWork& work) const noexcept;

  // True once both pieces have samples enough for decisions to rest on estimates.
  [[nodiscard]] bool is_trained() const noexcept;

  // How far estimates have been off lately: a fading mean of the distance in microseconds.
  [[nodiscard]] double sigma() const noexcept { return sigma_; }

  // What steps took over what was expected of them, outliers included: the ratio that this share of them, in
  // [0, 1], lay below. 1 before it is trained.
  [[nodiscard]] double ratio(double share) const noexcept { return ratios_.quantile(share); }

  // What estimate() is the larger of: bound by memory, bound by arithmetic.
  [[nodiscard]] std::array<StepTimePiece, 2> pieces() const noexcept;

  // All that was learnt, for a run elsewhere or later: a model that imports it goes on as this one would.
  [[nodiscard]] State export_state() const noexcept;
  // Throws InvalidArgument, and changes nothing, where `state` cannot come from export_state().
  void import_state(std::span<const double> state);

 private:
  static constexpr std::size_t kFeatures = 5;
  using Vector = std::array<double, kFeatures>;

  // A fit as its normal equations, gram * weights = target.
  struct Piece {
    Vector weights{};
    std::array<Vector, kFeatures> gram{};
    Vector target{};
    std::int64_t samples = 0;
  };

  static Vector features(const StepWork& work) noexcept;
  static double dot(const Vector& a, const Vector& b) noexcept;
  static void scale(Piece& piece, double gram, double target) noexcept;
  static void solve(Piece& piece) noexcept;

  void learn(Piece& piece, const Vector& x, double target, double size) noexcept;
  void rescale(double factor) noexcept;
  // What to learn from a measurement: it, or, where it is far from what was expected, something in between;
  // unless many in a row say that the device has changed.
  double target_of(double micros, double expected);

  std::array<Piece, 2> pieces_;  // bound by memory, by arithmetic
  double spread_ = 0;            // running median of relative residuals
  int run_ = 0;                  // clipped residuals in a row, with their sign
  double sigma_ = 0;
  RatioSketch ratios_;
};

}  // namespace airi
