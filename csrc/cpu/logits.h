#pragma once

#include <cstdint>
#include <span>

namespace airi::cpu {

// Logits of `rows` rows, `stride` floats apart.
struct LogitRows {
  const float* data = nullptr;
  int rows = 0;
  int vocab = 0;
  std::int64_t stride = 0;
};

struct Penalties {
  float repetition = 1;  // divides positive and multiplies negative logits of seen tokens
  float presence = 0;    // subtracted once from tokens of the output
  float frequency = 0;   // subtracted for each occurrence in the output
};

// Applies penalties to one row in place; `prompt` counts for the repetition penalty only.
// O(prompt + output). Throws InvalidArgument for a token outside of the row.
void apply_penalties(std::span<float> row, std::span<const std::int32_t> prompt,
                     std::span<const std::int32_t> output, const Penalties& penalties);

// Adds values[i] to the logit of ids[i]. Throws InvalidArgument for an id outside of the row.
void apply_bias(std::span<float> row, std::span<const std::int32_t> ids, std::span<const float> values);

// Adds minus infinity to the logit of every token whose bit is 0: bit i % 32 of mask[i / 32] is token i's.
// What is not a number stays so, and infinity becomes it. Throws InvalidArgument for a mask of another size.
void apply_token_mask(std::span<float> row, std::span<const std::uint32_t> mask);

struct LogprobArgs {
  const std::int32_t* tokens = nullptr;  // [rows]
  int top = 0;                           // alternatives per row
  float* logprobs = nullptr;             // [rows], of tokens
  std::int32_t* ranks = nullptr;         // [rows], 1 + how many logits are greater
  std::int32_t* top_ids = nullptr;       // [rows, top], most probable first, equals by id
  float* top_logprobs = nullptr;         // [rows, top]
};

// Log-probabilities under softmax(logits), without writing that out.
// Throws InvalidArgument.
void log_softmax_gather(const LogitRows& logits, const LogprobArgs& args);

}  // namespace airi::cpu
