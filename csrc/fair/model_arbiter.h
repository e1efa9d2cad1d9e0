#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/time.h"

namespace airi {

// Whose step is next on one device: deficit round robin between models in measured device
// microseconds. Never knows requests, tenants or blocks.
//
// Each turn adds quantum * weight to a model's deficit; it keeps the device while the deficit is
// positive and is charged after the fact what its batches took, so a deficit may go negative. While
// two models are backlogged, their times per weight differ by at most
// 2 * (quantum + longest batch / smaller weight). A pressed model may run before its turn, on credit that its
// later turns pay back; then the bound grows by 2 * max_borrow / smaller weight.
//
// Thread safety: none.
// Invariant: an idle model's deficit is not positive; the model on turn is backlogged or none is.
class ModelArbiter {
 public:
  struct Options {
    Micros quantum = 10'000;
    // Once chosen, a backlogged model keeps the device for at least this much device time.
    Micros min_residency = 0;
    // A pressed model may owe up to this, and a batch more. 0: none runs before its turn.
    Micros max_borrow = 0;
  };

  // Throws InvalidArgument unless 0 < quantum <= kMaxMicros, 0 <= min_residency, max_borrow <= kMaxMicros
  // and every weight lies in [1/1024, 1024].
  ModelArbiter(const Options& options, const std::vector<double>& weights);

  // One more model, idle. Throws InvalidArgument for a weight out of bounds.
  void add_model(double weight);

  // An idle model yields at once and keeps no credit; a debt stays.
  void set_backlogged(ModelId model, bool backlogged);

  // The model, backlogged, has nothing to run until the next set_backlogged() of it: all waits for a step in
  // flight. Meanwhile others run, on credit; it keeps its turn and what it is owed.
  void pass(ModelId model) { shares_.at(index(model)).passes = true; }

  // A pressed model breaks a promise if it waits for its turn.
  void set_pressed(ModelId model, bool pressed) { shares_.at(index(model)).pressed = pressed; }

  // The model to run next, or nothing where none is backlogged. Repeated calls without
  // charge() return the same model. O(number of models).
  [[nodiscard]] std::optional<ModelId> next();

  // Charges a batch of `model` that took `device_time`. REQUIRES: 0 <= device_time <= kMaxMicros.
  void charge(ModelId model, Micros device_time);

  [[nodiscard]] double deficit(ModelId model) const { return shares_.at(index(model)).deficit; }

 private:
  struct Share {
    double weight = 1.0;
    double deficit = 0.0;  // device microseconds still due
    bool backlogged = false;
    bool pressed = false;
    bool passes = false;
  };

  // The model that runs before the turn of another: of those that may, the one that is owed most, per weight.
  [[nodiscard]] std::optional<std::size_t> borrower() const;
  [[nodiscard]] bool is_owed_more(const Share& share, std::optional<std::size_t> than) const;
  // The model that runs while others pass, or nothing where all do.
  [[nodiscard]] std::optional<ModelId> stand_in() const;
  void start_turn(std::size_t model);
  void skip_fruitless_rounds();

  Options options_;
  std::vector<Share> shares_;
  std::optional<std::size_t> turn_;  // the model that holds the device
  std::size_t last_ = 0;             // where the round goes on from
  Micros residency_ = 0;             // device time of the present turn
  std::size_t num_backlogged_ = 0;
};

}  // namespace airi
