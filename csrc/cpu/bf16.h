#pragma once

#include <bit>
#include <cstdint>

// Scalar bfloat16 <-> float. bfloat16 values are held as std::uint16_t. Always inlined,
// so that no object compiled for a newer processor lends its copy to an older one.

namespace airi::cpu {

[[gnu::always_inline]] inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
[[gnu::always_inline]] inline std::uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
  const std::uint32_t rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
  return static_cast<std::uint16_t>((nan ? bits | 0x400000U : rounded) >> 16);
}

}  // namespace airi::cpu
