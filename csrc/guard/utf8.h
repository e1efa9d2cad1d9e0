#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace airi::guard {

// How far a text is into a character, as UTF-8 has it: no overlong forms, no surrogates.
enum class Utf8State : std::uint8_t {
  kWhole,
  kOneMore,
  kTwoMore,
  kThreeMore,
  kAfterE0,
  kAfterEd,
  kAfterF0,
  kAfterF4
};
inline constexpr std::size_t kNumUtf8States = 8;

[[nodiscard]] constexpr bool begins_long_character(std::uint8_t byte) noexcept { return byte >= 0xC0; }

// The state after one more byte; none where no text goes on so.
[[nodiscard]] constexpr std::optional<Utf8State> next_utf8(Utf8State state, std::uint8_t byte) noexcept {
  using enum Utf8State;
  if (state == kWhole) {
    if (byte < 0x80) return kWhole;
    if (byte < 0xC2 || byte > 0xF4) return std::nullopt;
    if (byte < 0xE0) return kOneMore;
    if (byte < 0xF0) return byte == 0xE0 ? kAfterE0 : byte == 0xED ? kAfterEd : kTwoMore;
    return byte == 0xF0 ? kAfterF0 : byte == 0xF4 ? kAfterF4 : kThreeMore;
  }
  struct Rule {
    std::uint8_t first;
    std::uint8_t last;
    Utf8State to;
  };
  constexpr std::array<Rule, kNumUtf8States> kRules{{
      {},
      {0x80, 0xBF, kWhole},
      {0x80, 0xBF, kOneMore},
      {0x80, 0xBF, kTwoMore},
      {0xA0, 0xBF, kOneMore},
      {0x80, 0x9F, kOneMore},
      {0x90, 0xBF, kTwoMore},
      {0x80, 0x8F, kTwoMore},
  }};
  const Rule& rule = kRules[static_cast<std::size_t>(state)];
  if (byte < rule.first || byte > rule.last) return std::nullopt;
  return rule.to;
}

}  // namespace airi::guard
