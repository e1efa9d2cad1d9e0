#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "sched/step_time.h"

namespace airi::route {

// Prompt tokens that are still to be computed.
struct PrefillWork {
  std::int64_t tokens = 0;
  double pairs = 0;  // of a token and one that it attends to

  // What of a prompt of `length` tokens is left once `computed` are.
  static PrefillWork rest_of(std::int64_t length, std::int64_t computed) noexcept {
    const auto all = static_cast<double>(length);
    const auto done = static_cast<double>(computed);
    return {length - computed, (all * all - done * done) / 2};
  }
  PrefillWork& operator+=(const PrefillWork& other) noexcept {
    tokens += other.tokens;
    pairs += other.pairs;
    return *this;
  }
};

// Streams that get a token in every step.
struct DecodeSet {
  std::int64_t seqs = 0;
  std::int64_t context = 0;  // sum of the lengths that they attend to
};

// How long a replica takes for what it is sent, by its own step-time model: pure arithmetic.
//
// Thread safety: immutable.
struct StepRates {
  // Of StepTimeModel::pieces(). Where all is 0, as of a model that has learnt nothing yet, a token takes a
  // microsecond: fewer tokens are then still better than more.
  std::array<StepTimePiece, 2> pieces;
  std::int64_t max_batch_tokens = 2048;

  // Microseconds until `work` is computed, in steps as full as they may be, beside these decodes.
  [[nodiscard]] double prefill(const PrefillWork& work, const DecodeSet& decodes) const noexcept {
    if (work.tokens <= 0) return 0;
    const std::int64_t room = std::max<std::int64_t>(max_batch_tokens - decodes.seqs, 1);
    const std::int64_t steps = (work.tokens + room - 1) / room;
    return micros({.tokens = work.tokens + steps * decodes.seqs,
                   .seqs = steps * (decodes.seqs + 1),
                   .decode_context = steps * decodes.context,
                   .prefill_pairs = work.pairs},
                  steps);
  }

  // Microseconds of a step of these decodes alone.
  [[nodiscard]] double step(const DecodeSet& decodes) const noexcept {
    return micros(
        {.tokens = decodes.seqs, .seqs = decodes.seqs, .decode_context = decodes.context, .prefill_pairs = 0},
        1);
  }

 private:
  // Of so many steps that do this work together.
  [[nodiscard]] double micros(const StepWork& work, std::int64_t steps) const noexcept {
    double most = 0;
    double all = 0;
    for (const StepTimePiece& p : pieces) {
      most = std::max(most, p.micros(work) + static_cast<double>(steps - 1) * p.step);
      all += p.step + p.token + p.seq + p.context + p.pair;
    }
    return all > 0 ? most : static_cast<double>(work.tokens);
  }
};

}  // namespace airi::route
