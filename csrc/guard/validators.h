#pragma once

#include <cstdint>
#include <span>

#include "guard/pattern.h"

namespace airi::guard {

// Whether the bytes of a match pass. Spaces, dashes and dots between digits and letters do not count.
//   kLuhn  payment cards: 12 to 19 digits whose Luhn sum is a multiple of ten, not all the same
//   kIban  account numbers: the length of their country, and mod 97 is one (ISO 13616)
[[nodiscard]] bool passes(Validator validator, std::span<const std::uint8_t> match);

}  // namespace airi::guard
