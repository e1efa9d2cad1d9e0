#pragma once

#include "cpu/logits.h"

// What sampling and log-probabilities share.

namespace airi::cpu {

// Working memory of the calling thread for one row of `vocab` logits.
struct SampleScratch {
  int blocks = 0;               // of the row
  float* maxima = nullptr;      // [blocks]
  float* candidates = nullptr;  // these three: [vocab] and slack
  float* above = nullptr;
  float* below = nullptr;
};

// Valid until the thread's next call.
[[nodiscard]] SampleScratch sample_scratch(int vocab);

// Throws InvalidArgument naming `function` and the field that is out of range.
void check_logits(const LogitRows& logits, const char* function);

}  // namespace airi::cpu
