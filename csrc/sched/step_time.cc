#include "sched/step_time.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"

namespace airi {
namespace {

constexpr std::size_t kMemory = 0;
constexpr std::size_t kArithmetic = 1;

constexpr double kForgetting = 0.998;
constexpr std::int64_t kTrainingSamples = 32;  // of each piece, told apart by what the step holds
constexpr int kSweeps = 8;
constexpr double kClip = 5;  // spreads that one residual may count
constexpr double kSpreadStep = 0.02;
constexpr double kLeastSpread = 0.02;
constexpr int kChangeRun = 8;  // clipped residuals of one sign in a row: no outliers any more
constexpr double kKeptHistory = 0.02;
constexpr double kSpreadAfterChange = 0.1;
constexpr double kSigmaStep = 0.02;
// A sum of squares that has faded below this is 0. On its way down to the smallest numbers there are, which
// no factor makes smaller, its inverse would end as infinity: some 350,000 steps after the last such work.
constexpr double kForgotten = 1e-100;

// Divides each feature by its usual size, so that all weights are of one magnitude.
constexpr std::array kUsual = {1.0, 256.0, 64.0, 65'536.0, 1'048'576.0};

}  // namespace

StepTimeModel::Vector StepTimeModel::features(const StepWork& work) noexcept {
  return {1.0 / kUsual[0], static_cast<double>(work.tokens) / kUsual[1],
          static_cast<double>(work.seqs) / kUsual[2], static_cast<double>(work.decode_context) / kUsual[3],
          work.prefill_pairs / kUsual[4]};
}

double StepTimeModel::dot(const Vector& a, const Vector& b) noexcept {
  double sum = 0;
  for (std::size_t i = 0; i < kFeatures; ++i) sum += a[i] * b[i];
  return sum;
}

void StepTimeModel::scale(Piece& piece, double gram, double target) noexcept {
  for (Vector& row : piece.gram) {
    for (double& value : row) value *= gram;
  }
  for (double& value : piece.target) value *= target;
  for (std::size_t i = 0; i < kFeatures; ++i) {
    if (piece.gram[i][i] >= kForgotten) continue;
    for (std::size_t j = 0; j < kFeatures; ++j) piece.gram[i][j] = piece.gram[j][i] = 0;
    piece.target[i] = 0;
  }
}

// Coordinate descent from the last solution, which is close: each weight in turn takes its best value of at
// least 0 with the others as they are. best[i] is that value of weight i before it is cut: it changes with
// the other weights only, so that a weight waits for little arithmetic of the one before it.
void StepTimeModel::solve(Piece& piece) noexcept {
  Vector inverse{};
  Vector best{};
  for (std::size_t i = 0; i < kFeatures; ++i) {
    // Else it is a kind of work that no step has held, or none for long: its row is 0, and its weight stays.
    if (piece.gram[i][i] > 0) inverse[i] = 1 / piece.gram[i][i];
    best[i] = piece.weights[i] + (piece.target[i] - dot(piece.gram[i], piece.weights)) * inverse[i];
  }
  std::array<Vector, kFeatures> effect;  // of weight i on best[j]
  for (std::size_t i = 0; i < kFeatures; ++i) {
    for (std::size_t j = 0; j < kFeatures; ++j) effect[i][j] = i == j ? 0 : piece.gram[i][j] * inverse[j];
  }
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (std::size_t i = 0; i < kFeatures; ++i) {
      const double weight = std::max(0.0, best[i]);
      const double change = weight - piece.weights[i];
      piece.weights[i] = weight;
      for (std::size_t j = 0; j < kFeatures; ++j) best[j] -= effect[i][j] * change;
    }
  }
}

bool StepTimeModel::is_trained() const noexcept {
  return std::ranges::all_of(pieces_, [](const Piece& p) { return p.samples >= kTrainingSamples; });
}

double StepTimeModel::estimate(const StepWork& work) const noexcept {
  const Vector x = features(work);
  return std::max(dot(pieces_[kMemory].weights, x), dot(pieces_[kArithmetic].weights, x));
}

// The device has become slower or faster: keeps the shape at another scale, and forgets most of the past.
void StepTimeModel::rescale(double factor) noexcept {
  for (Piece& piece : pieces_) {
    scale(piece, kKeptHistory, kKeptHistory * factor);
    for (double& weight : piece.weights) weight *= factor;
  }
  spread_ = kSpreadAfterChange;
  run_ = 0;
}

double StepTimeModel::target_of(double micros, double expected) {
  const double residual = micros - expected;
  if (spread_ == 0) spread_ = std::abs(residual) / expected;
  spread_ = std::max(spread_, kLeastSpread);
  const double limit = kClip * spread_ * expected;
  spread_ *= std::abs(residual) > spread_ * expected ? 1 + kSpreadStep : 1 - kSpreadStep;
  if (std::abs(residual) <= limit) {
    run_ = 0;
    return micros;
  }
  const int sign = residual > 0 ? 1 : -1;
  run_ = run_ * sign > 0 ? run_ + sign : sign;
  if (std::abs(run_) < kChangeRun) return expected + sign * limit;
  rescale(micros / expected);
  return micros;
}

void StepTimeModel::learn(Piece& piece, const Vector& x, double target, double size) noexcept {
  ++piece.samples;
  // Steps take from tens of microseconds to seconds: relative errors are what should be small.
  const double weight = 1 / (size * size);
  scale(piece, kForgetting, kForgetting);
  for (std::size_t i = 0; i < kFeatures; ++i) {
    for (std::size_t j = 0; j < kFeatures; ++j) piece.gram[i][j] += weight * x[i] * x[j];
    piece.target[i] += weight * x[i] * target;
  }
  solve(piece);
}

void StepTimeModel::observe(const StepWork& work, double micros) {
  if (!std::isfinite(micros) || micros <= 0) return;
  if (work.tokens < 0 || work.seqs < 0 || work.decode_context < 0 || !(work.prefill_pairs >= 0)) return;
  const bool trained = is_trained();
  // Prompts of one token, as an engine begins with: what such a step takes would be put down to half a pair,
  // and all of a long prompt be priced by it.
  if (!trained && work.tokens <= work.seqs && work.prefill_pairs > 0) return;
  const Vector x = features(work);
  const double expected = estimate(work);
  if (trained && expected > 0) ratios_.add(micros / expected);
  const double target = trained && expected > 0 ? target_of(micros, expected) : micros;
  sigma_ += kSigmaStep * (std::abs(target - expected) - sigma_);
  if (!trained) {
    // From equal starts one piece would never be the larger one: they begin with steps without and with
    // prefills.
    Piece& piece = pieces_[work.tokens > work.seqs ? kArithmetic : kMemory];
    learn(piece, x, micros, std::max(micros, dot(piece.weights, x)));
    return;
  }
  const double size = std::max(target, estimate(work));
  const double memory = dot(pieces_[kMemory].weights, x);
  const double arithmetic = dot(pieces_[kArithmetic].weights, x);
  const bool is_memory = std::abs(memory - target) < std::abs(arithmetic - target);
  if (is_memory || memory > target) learn(pieces_[kMemory], x, target, size);
  if (!is_memory || arithmetic > target) learn(pieces_[kArithmetic], x, target, size);
}

std::array<StepTimePiece, 2> StepTimeModel::pieces() const noexcept {
  std::array<StepTimePiece, 2> found;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const Vector& w = pieces_[i].weights;
    found[i] = {.step = w[0] / kUsual[0],
                .token = w[1] / kUsual[1],
                .seq = w[2] / kUsual[2],
                .context = w[3] / kUsual[3],
                .pair = w[4] / kUsual[4]};
  }
  return found;
}

StepTimeModel::State StepTimeModel::export_state() const noexcept {
  State state{};
  auto out = state.begin();
  for (const Piece& piece : pieces_) {
    out = std::ranges::copy(piece.weights, out).out;
    for (const Vector& row : piece.gram) out = std::ranges::copy(row, out).out;
    out = std::ranges::copy(piece.target, out).out;
    *out++ = static_cast<double>(piece.samples);
  }
  for (const double value : {spread_, static_cast<double>(run_), sigma_}) *out++ = value;
  std::ranges::copy(ratios_.state(), out);
  return state;
}

void StepTimeModel::import_state(std::span<const double> state) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw InvalidArgument(std::string("state of a step-time model must ") + what);
  };
  require(state.size() == kStateSize, "be what export_state() gave: its length differs");
  require(std::ranges::all_of(state, [](double v) { return std::isfinite(v); }), "be finite");
  const auto is_count = [](double v) { return v >= 0 && v <= 0x1p53 && v == std::floor(v); };
  StepTimeModel read;
  auto in = state.begin();
  const auto fill = [&](Vector& vector) {
    for (double& value : vector) value = *in++;
  };
  for (Piece& piece : read.pieces_) {
    fill(piece.weights);
    require(std::ranges::all_of(piece.weights, [](double w) { return w >= 0; }), "have no negative weight");
    for (Vector& row : piece.gram) fill(row);
    for (std::size_t i = 0; i < kFeatures; ++i) {
      require(piece.gram[i][i] >= 0, "have normal equations that samples give");
    }
    fill(piece.target);
    require(is_count(*in), "count samples");
    piece.samples = static_cast<std::int64_t>(*in++);
  }
  read.spread_ = *in++;
  require(std::abs(*in) < kChangeRun && is_count(std::abs(*in)), "count residuals");
  read.run_ = static_cast<int>(*in++);
  read.sigma_ = *in++;
  require(read.spread_ >= 0 && read.sigma_ >= 0, "have no negative spread");
  RatioSketch::State ratios{};
  std::ranges::copy(in, state.end(), ratios.begin());
  require(RatioSketch::is_valid(ratios), "count ratios");
  read.ratios_ = RatioSketch(ratios);
  *this = read;
}

}  // namespace airi
