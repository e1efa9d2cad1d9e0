#include "cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "base/check.h"
#include "cpu/aligned_buffer.h"
#include "cpu/sample_kernels.h"
#include "cpu/sample_rows.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The tokens that take part: logits above `threshold`, or equal to it up to `last_tie`.
struct Cut {
  float threshold = -kInfinity;
  std::int32_t last_tie = std::numeric_limits<std::int32_t>::max();
};

struct RowSampler {
  const SampleKernels& kernels;
  const float* x;
  int vocab;
  RowScan scan;
  SampleScratch& scratch;
  float inverse_temperature;

  [[nodiscard]] float mass(float value) const { return std::exp((value - scan.max) * inverse_temperature); }

  // A lower bound of the k-th greatest logit: the k-th greatest of the blocks' maxima.
  [[nodiscard]] float top_k_bound(int k) const {
    if (k > scratch.blocks) return -kInfinity;
    float* const copy = scratch.above;
    std::copy_n(scratch.maxima, scratch.blocks, copy);
    std::nth_element(copy, copy + k - 1, copy + scratch.blocks, std::greater<>());
    return copy[k - 1];
  }

  // The id of the n-th token, from the lowest, whose logit is `value`.
  [[nodiscard]] std::int32_t nth_tie(float value, std::int64_t n) const {
    for (int block = 0; block < scratch.blocks; ++block) {
      if (scratch.maxima[block] < value) continue;
      const int end = std::min((block + 1) * kSampleBlock, vocab);
      for (int id = block * kSampleBlock; id < end; ++id) {
        if (x[id] == value && --n == 0) return id;
      }
    }
    return std::numeric_limits<std::int32_t>::max();
  }

  // The cut of top_p over the n candidates, of which `total` is the mass.
  [[nodiscard]] Cut top_p_cut(float top_p, int n, double total) const;
  [[nodiscard]] Cut cut(int top_k, float top_p, float min_p) const;
};

// Quickselect by mass: a part that cannot hold the last token kept is never looked at again.
Cut RowSampler::top_p_cut(float top_p, int n, double total) const {
  const double target = static_cast<double>(top_p) * total;
  double taken = 0;  // mass of all values above the current part
  float* part = scratch.candidates;
  float* above = scratch.above;
  float* below = scratch.below;
  Cut cut{.threshold = scan.max, .last_tie = scan.argmax};
  while (n > 0) {
    const float a = part[0];
    const float b = part[n / 2];
    const float c = part[n - 1];
    const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
    const Partition parts = kernels.partition(part, n, pivot, scan.max, inverse_temperature, above, below);
    if (parts.above > 0 && taken + parts.mass_above >= target) {
      n = parts.above;
      std::swap(part, above);
      continue;
    }
    taken += parts.mass_above;
    const std::int64_t equal = n - parts.above - parts.below;
    const double one = mass(pivot);
    const double needed = std::max(1.0, std::ceil((target - taken) / one));
    cut.threshold = pivot;
    if (needed < static_cast<double>(equal)) {
      cut.last_tie = nth_tie(pivot, static_cast<std::int64_t>(needed));
      return cut;
    }
    cut.last_tie = std::numeric_limits<std::int32_t>::max();
    taken += static_cast<double>(equal) * one;
    if (taken >= target) return cut;
    n = parts.below;
    std::swap(part, below);
  }
  return cut;
}

Cut RowSampler::cut(int top_k, float top_p, float min_p) const {
  const bool by_k = top_k > 0 && top_k < vocab;
  const bool by_p = top_p < 1;
  Cut result;
  if (min_p > 0) result.threshold = scan.max + std::log(std::min(min_p, 1.0F)) / inverse_temperature;
  if (!by_k && !by_p) return result;
  float bound = result.threshold;
  if (by_k) bound = std::max(bound, top_k_bound(top_k));
  double total = -1;
  if (by_p && !by_k && min_p <= 0) {
    total = kernels.sum_exp(x, vocab, scan.max, inverse_temperature);
    // Tokens below it sum to less than 1 - top_p, so that top_p never keeps them. The
    // factor is for rounding.
    const double least = 0.99 * (1.0 - static_cast<double>(top_p)) * total / vocab;
    bound = scan.max + static_cast<float>(std::log(least)) / inverse_temperature;
  }
  int n = kernels.collect(x, vocab, scratch.maxima, bound, scratch.candidates);
  if (by_k && n >= top_k) {
    float* const values = scratch.candidates;
    std::nth_element(values, values + top_k - 1, values + n, std::greater<>());
    result.threshold = values[top_k - 1];
    n = static_cast<int>(std::partition(values, values + n, [&](float y) { return y >= result.threshold; }) -
                         values);
  }
  if (!by_p) return result;
  if (total < 0) total = kernels.sum_exp(scratch.candidates, n, scan.max, inverse_temperature);
  return top_p_cut(top_p, n, total);
}

void sample_row(const SampleKernels& kernels, const LogitRows& logits, const SampleArgs& args, int row) {
  const float* x = logits.data + row * logits.stride;
  SampleScratch scratch = sample_scratch(logits.vocab);
  const RowScan scan = kernels.scan(x, logits.vocab, scratch.maxima);
  const bool broken = scan.nan || std::isinf(scan.max);
  args.nan_flags[row] = broken ? 1 : 0;
  args.out_tokens[row] = broken ? 0 : scan.argmax;
  const float temperature = args.temperature[row];
  if (broken || temperature < kGreedyTemperature) return;
  const RowSampler sampler{kernels, x, logits.vocab, scan, scratch, 1.0F / temperature};
  const Cut cut = sampler.cut(args.top_k[row], args.top_p[row], args.min_p[row]);
  args.out_tokens[row] = kernels.pick(x, logits.vocab, scratch.maxima,
                                      {.inverse_temperature = sampler.inverse_temperature,
                                       .threshold = cut.threshold,
                                       .last_tie = cut.last_tie,
                                       .start = scan.argmax,
                                       .seed = args.seed[row],
                                       .draw = static_cast<std::uint32_t>(args.draw[row])});
}

}  // namespace

SampleScratch sample_scratch(int vocab) {
  thread_local AlignedBuffer buffer;
  SampleScratch scratch;
  scratch.blocks = (vocab + kSampleBlock - 1) / kSampleBlock;
  const std::size_t maxima = static_cast<std::size_t>(scratch.blocks + kSampleBlock) / 16 * 16;
  const std::size_t values = static_cast<std::size_t>(vocab + kSampleBlock + kSampleSlack) / 16 * 16;
  buffer.reserve((maxima + 3 * values) * sizeof(float));
  scratch.maxima = buffer.as<float>();
  scratch.candidates = scratch.maxima + maxima;
  scratch.above = scratch.candidates + values;
  scratch.below = scratch.above + values;
  return scratch;
}

void check_logits(const LogitRows& logits, const char* function) {
  const auto refuse = [&](const std::string& what) {
    throw InvalidArgument(std::string(function) + ": " + what);
  };
  if (logits.data == nullptr) refuse("logits must be an address, got 0");
  if (logits.rows < 1) refuse("rows is " + std::to_string(logits.rows) + ", accepted is 1 or more");
  if (logits.vocab < 1) refuse("vocab is " + std::to_string(logits.vocab) + ", accepted is 1 or more");
  if (logits.stride < logits.vocab) {
    refuse("stride is " + std::to_string(logits.stride) + ", accepted is vocab (" +
           std::to_string(logits.vocab) + ") or more");
  }
}

void sample(const LogitRows& logits, const SampleArgs& args) {
  check_logits(logits, "sample");
  const bool null = args.temperature == nullptr || args.top_k == nullptr || args.top_p == nullptr ||
                    args.min_p == nullptr || args.seed == nullptr || args.draw == nullptr ||
                    args.out_tokens == nullptr || args.nan_flags == nullptr;
  if (null) throw InvalidArgument("sample: every array must be an address, got 0");
  for (int row = 0; row < logits.rows; ++row) {
    const float t = args.temperature[row];
    if (std::isfinite(t) && t >= 0) continue;
    throw InvalidArgument("sample: temperature[" + std::to_string(row) + "] is " + std::to_string(t) +
                          ", accepted is 0 (greedy) or more");
  }
  const SampleKernels& kernels = AIRI_SELECT_KERNELS(kSampleKernels, active_isa());
  shared_pool().parallel_for(
      logits.rows, [&](std::int64_t row) { sample_row(kernels, logits, args, static_cast<int>(row)); });
}

}  // namespace airi::cpu
