#include "cpu/logits.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "cpu/sample_kernels.h"
#include "cpu/sample_rows.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

constexpr std::int32_t kPromptOnly = 0;  // a count of occurrences in the output

void check_ids(std::span<const std::int32_t> ids, std::size_t vocab, const char* what) {
  for (const std::int32_t id : ids) {
    if (id >= 0 && static_cast<std::size_t>(id) < vocab) continue;
    throw InvalidArgument(std::string(what) + " holds an id outside of the " + std::to_string(vocab) +
                          " logits");
  }
}

// The greatest `top` logits, equal ones by ascending id, in found[0..top).
void find_top(const float* x, int vocab, const SampleScratch& scratch, int top,
              std::vector<std::pair<float, std::int32_t>>& found) {
  float bound = -std::numeric_limits<float>::infinity();
  if (top <= scratch.blocks) {
    std::copy_n(scratch.maxima, scratch.blocks, scratch.above);
    std::nth_element(scratch.above, scratch.above + top - 1, scratch.above + scratch.blocks,
                     std::greater<>());
    bound = scratch.above[top - 1];
  }
  found.clear();
  for (int block = 0; block < scratch.blocks; ++block) {
    if (scratch.maxima[block] < bound) continue;
    const int end = std::min((block + 1) * kSampleBlock, vocab);
    for (int id = block * kSampleBlock; id < end; ++id) {
      if (x[id] >= bound) found.emplace_back(x[id], id);
    }
  }
  std::partial_sort(found.begin(), found.begin() + top, found.end(), [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  });
}

void gather_row(const SampleKernels& kernels, const LogitRows& logits, const LogprobArgs& args, int row) {
  const float* x = logits.data + row * logits.stride;
  const SampleScratch scratch = sample_scratch(logits.vocab);
  const RowScan scan = kernels.scan(x, logits.vocab, scratch.maxima);
  const float value = x[args.tokens[row]];
  args.ranks[row] = 1 + kernels.count_above(x, logits.vocab, value);
  // Of NaN or infinite logits no log-probability exists: NaN says so.
  const bool broken = scan.nan || std::isinf(scan.max);
  const double sum = kernels.sum_exp(x, logits.vocab, scan.max, 1.0F);
  const double log_sum =
      broken ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(scan.max) + std::log(sum);
  args.logprobs[row] = static_cast<float>(value - log_sum);
  if (args.top == 0) return;
  const std::int64_t first = std::int64_t{row} * args.top;
  if (broken) {
    std::fill_n(args.top_ids + first, args.top, 0);
    std::fill_n(args.top_logprobs + first, args.top, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  thread_local std::vector<std::pair<float, std::int32_t>> found;
  find_top(x, logits.vocab, scratch, args.top, found);
  for (int i = 0; i < args.top; ++i) {
    args.top_ids[first + i] = found[static_cast<std::size_t>(i)].second;
    args.top_logprobs[first + i] = static_cast<float>(found[static_cast<std::size_t>(i)].first - log_sum);
  }
}

}  // namespace

void apply_penalties(std::span<float> row, std::span<const std::int32_t> prompt,
                     std::span<const std::int32_t> output, const Penalties& penalties) {
  const bool positive = std::isfinite(penalties.repetition) && penalties.repetition > 0;
  if (!positive) throw InvalidArgument("apply_penalties: repetition must be above 0");
  check_ids(prompt, row.size(), "apply_penalties: prompt_ids");
  check_ids(output, row.size(), "apply_penalties: output_ids");
  // Occurrences in the output, for tokens seen anywhere; only touched entries are reset.
  constexpr std::int32_t kUnseen = std::numeric_limits<std::int32_t>::min();
  thread_local std::vector<std::int32_t> counts;
  thread_local std::vector<std::int32_t> seen;
  if (counts.size() < row.size()) counts.resize(row.size(), kUnseen);
  seen.clear();
  const auto visit = [&](std::int32_t id, std::int32_t occurrences) {
    std::int32_t& count = counts[static_cast<std::size_t>(id)];
    if (count == kUnseen) {
      seen.push_back(id);
      count = kPromptOnly;
    }
    count += occurrences;
  };
  for (const std::int32_t id : prompt) visit(id, 0);
  for (const std::int32_t id : output) visit(id, 1);
  for (const std::int32_t id : seen) {
    float& logit = row[static_cast<std::size_t>(id)];
    const std::int32_t count = std::exchange(counts[static_cast<std::size_t>(id)], kUnseen);
    logit = logit > 0 ? logit / penalties.repetition : logit * penalties.repetition;
    if (count == kPromptOnly) continue;
    logit -= penalties.frequency * static_cast<float>(count) + penalties.presence;
  }
}

void apply_bias(std::span<float> row, std::span<const std::int32_t> ids, std::span<const float> values) {
  check_ids(ids, row.size(), "apply_bias: ids");
  for (std::size_t i = 0; i < ids.size(); ++i) row[static_cast<std::size_t>(ids[i])] += values[i];
}

void apply_token_mask(std::span<float> row, std::span<const std::uint32_t> mask) {
  constexpr std::size_t kBits = 32;
  if (mask.size() != (row.size() + kBits - 1) / kBits) {
    throw InvalidArgument("apply_token_mask: mask has " + std::to_string(mask.size()) + " words for " +
                          std::to_string(row.size()) + " logits");
  }
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  for (std::size_t word = 0; word < mask.size(); ++word) {
    const std::uint32_t bits = mask[word];
    if (bits == ~std::uint32_t{0}) continue;
    const std::span<float> logits = row.subspan(word * kBits, std::min(kBits, row.size() - word * kBits));
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] += (bits >> i & 1U) != 0 ? 0.0F : kLeast;
  }
}

void log_softmax_gather(const LogitRows& logits, const LogprobArgs& args) {
  check_logits(logits, "log_softmax_gather");
  if (args.top < 0 || args.top > logits.vocab) {
    throw InvalidArgument("log_softmax_gather: top is " + std::to_string(args.top) +
                          ", accepted is 0 to vocab (" + std::to_string(logits.vocab) + ")");
  }
  const bool null = args.tokens == nullptr || args.logprobs == nullptr || args.ranks == nullptr ||
                    (args.top > 0 && (args.top_ids == nullptr || args.top_logprobs == nullptr));
  if (null) throw InvalidArgument("log_softmax_gather: every array must be an address, got 0");
  check_ids({args.tokens, static_cast<std::size_t>(logits.rows)}, static_cast<std::size_t>(logits.vocab),
            "log_softmax_gather: tokens");
  const SampleKernels& kernels = AIRI_SELECT_KERNELS(kSampleKernels, active_isa());
  shared_pool().parallel_for(
      logits.rows, [&](std::int64_t row) { gather_row(kernels, logits, args, static_cast<int>(row)); });
}

}  // namespace airi::cpu
