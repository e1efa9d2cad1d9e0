#include "sim/workload.h"

#include <algorithm>

namespace airi {
namespace {

// Tokens fall into regions: [0, 2^30) small part ids and filling, then large part ids, requests' own
// stretches, generated ones.
constexpr std::int64_t kSmallIds = std::int64_t{1} << 30;
constexpr std::int32_t kLargePart = 1 << 30;
constexpr std::int32_t kOwnPart = kLargePart + (1 << 29);
constexpr std::int32_t kGenerated = kOwnPart + (1 << 28);

std::int32_t low_bits(std::int64_t value, int bits) noexcept {
  return static_cast<std::int32_t>(value & ((std::int64_t{1} << bits) - 1));
}

void write(std::span<std::int32_t> out, std::int32_t a, std::int32_t b, std::int32_t c) noexcept {
  const std::int32_t head[] = {a, b, c};
  std::copy_n(head, std::min<std::size_t>(out.size(), 3), out.begin());
}

void write_part(std::int64_t id, std::span<std::int32_t> out) noexcept {
  if (id < kSmallIds) {
    write(out, low_bits(id, 30), 0, 0);
  } else {
    write(out, kLargePart + low_bits(id, 29), low_bits(id >> 29, 30), low_bits(id >> 59, 4));
  }
}

}  // namespace

std::vector<std::int32_t> prompt_tokens(const TraceRequest& request, std::int32_t part_tokens) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(request.input_tokens));
  const auto size = static_cast<std::size_t>(part_tokens);
  std::span<std::int32_t> rest(tokens);
  for (const std::int64_t id : request.parts) {
    if (rest.empty()) break;
    const std::size_t length = std::min(size, rest.size());
    write_part(id, rest.first(length));
    rest = rest.subspan(length);
  }
  const std::int64_t own = raw(request.id);
  if (!rest.empty()) write(rest, kOwnPart + low_bits(own, 28), low_bits(own >> 28, 30), 0);
  return tokens;
}

std::int32_t generated_token(RequestId id) noexcept { return kGenerated + low_bits(raw(id), 28); }

}  // namespace airi
