#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/time.h"

namespace airi {

// One request of a trace. A prompt is known by its parts: stretches of `part_tokens` tokens, the last one
// perhaps cut, each with an id. Equal leading ids are equal tokens; what no part covers is the request's own.
struct TraceRequest {
  RequestId id{};  // unique in a simulation
  TenantId tenant{};
  std::int32_t band = 0;
  TimePoint arrival{};
  std::int32_t input_tokens = 0;
  std::int32_t output_tokens = 0;
  std::span<const std::int64_t> parts;
};

// The tokens of a prompt, such that two prompts share exactly the prefix that their parts say. Only the first
// tokens of a part tell it from others, so that making them costs little more than clearing memory.
//
// Ids of parts below 2^30 are told apart by one token; larger ones by three. REQUIRES: ids are not negative.
[[nodiscard]] std::vector<std::int32_t> prompt_tokens(const TraceRequest& request, std::int32_t part_tokens);

// What a request generates: a token that occurs in no prompt.
[[nodiscard]] std::int32_t generated_token(RequestId id) noexcept;

}  // namespace airi
