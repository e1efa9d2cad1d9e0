#include "fair/model_arbiter.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"

namespace airi {
namespace {

// Weights further apart would make deficits that doubles cannot add up.
constexpr double kMinWeight = 1.0 / 1024;
constexpr double kMaxWeight = 1024.0;

}  // namespace

ModelArbiter::ModelArbiter(const Options& options, const std::vector<double>& weights) : options_(options) {
  if (options.quantum <= 0 || options.quantum > kMaxMicros) {
    throw InvalidArgument("quantum_us must be positive and at most 2^53, got " +
                          std::to_string(options.quantum));
  }
  if (options.min_residency < 0 || options.min_residency > kMaxMicros) {
    throw InvalidArgument("min_residency_us must not be negative nor above 2^53, got " +
                          std::to_string(options.min_residency));
  }
  if (options.max_borrow < 0 || options.max_borrow > kMaxMicros) {
    throw InvalidArgument("max_borrow_us must not be negative nor above 2^53, got " +
                          std::to_string(options.max_borrow));
  }
  for (const double weight : weights) add_model(weight);
  last_ = shares_.empty() ? 0 : shares_.size() - 1;
}

void ModelArbiter::add_model(double weight) {
  if (!(weight >= kMinWeight && weight <= kMaxWeight)) {
    throw InvalidArgument("device_weight must lie in [1/1024, 1024], got " + std::to_string(weight));
  }
  shares_.push_back({.weight = weight});
}

void ModelArbiter::set_backlogged(ModelId model, bool backlogged) {
  Share& share = shares_.at(index(model));
  share.passes = false;
  if (share.backlogged == backlogged) return;
  share.backlogged = backlogged;
  if (backlogged) {
    ++num_backlogged_;
    return;
  }
  --num_backlogged_;
  share.deficit = std::min(share.deficit, 0.0);
  if (turn_ == index(model)) turn_.reset();
}

std::optional<std::size_t> ModelArbiter::borrower() const {
  const auto least = -static_cast<double>(options_.max_borrow);
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < shares_.size(); ++i) {
    const Share& share = shares_[i];
    if (!share.backlogged || !share.pressed || share.deficit <= least) continue;
    if (i == turn_) return std::nullopt;
    if (is_owed_more(share, found)) found = i;
  }
  return found;
}

bool ModelArbiter::is_owed_more(const Share& share, std::optional<std::size_t> than) const {
  return !than || share.deficit / share.weight > shares_[*than].deficit / shares_[*than].weight;
}

std::optional<ModelId> ModelArbiter::stand_in() const {
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < shares_.size(); ++i) {
    const Share& share = shares_[i];
    if (share.backlogged && !share.passes && is_owed_more(share, found)) found = i;
  }
  if (!found) return std::nullopt;
  return ModelId{static_cast<std::int32_t>(*found)};
}

void ModelArbiter::start_turn(std::size_t model) {
  Share& share = shares_[model];
  last_ = model;
  residency_ = 0;
  share.deficit += static_cast<double>(options_.quantum) * share.weight;
  if (share.deficit > 0.0) turn_ = model;
}

// A long batch may leave debts of many quanta. Rounds in which nobody's deficit would turn
// positive are credited at once, so next() stays O(models).
void ModelArbiter::skip_fruitless_rounds() {
  double rounds = INFINITY;
  for (const Share& share : shares_) {
    if (!share.backlogged) continue;
    const double gain = static_cast<double>(options_.quantum) * share.weight;
    rounds = std::min(rounds, std::floor(-share.deficit / gain));
  }
  if (!(rounds > 0.0) || !std::isfinite(rounds)) return;
  for (Share& share : shares_) {
    if (!share.backlogged) continue;
    share.deficit += rounds * static_cast<double>(options_.quantum) * share.weight;
  }
}

std::optional<ModelId> ModelArbiter::next() {
  if (num_backlogged_ == 0) return std::nullopt;
  if (std::ranges::any_of(shares_, &Share::passes)) return stand_in();
  const bool resident = turn_ && residency_ > 0 && residency_ < options_.min_residency;
  if (turn_ && shares_[*turn_].deficit <= 0.0 && !resident) turn_.reset();
  for (std::size_t tried = 0; !turn_; ++tried) {
    if (tried > 0 && tried % num_backlogged_ == 0) skip_fruitless_rounds();
    AIRI_CHECK(tried <= 4 * shares_.size()) << "no model's deficit turns positive";
    std::size_t candidate = last_;
    do {
      candidate = (candidate + 1) % shares_.size();
    } while (!shares_[candidate].backlogged);
    start_turn(candidate);
  }
  std::size_t next = *turn_;
  if (options_.max_borrow > 0 && !resident) next = borrower().value_or(next);
  return ModelId{static_cast<std::int32_t>(next)};
}

void ModelArbiter::charge(ModelId model, Micros device_time) {
  AIRI_CHECK(device_time >= 0 && device_time <= kMaxMicros) << "device_time " << device_time;
  Share& share = shares_.at(index(model));
  share.deficit -= static_cast<double>(device_time);
  if (!share.backlogged) share.deficit = std::min(share.deficit, 0.0);
  if (turn_ == index(model)) residency_ = std::min(residency_ + device_time, kMaxMicros);
}

}  // namespace airi
