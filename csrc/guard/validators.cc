#include "guard/validators.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

namespace airi::guard {
namespace {

// Country and length in letters and digits, from the SWIFT registry of IBAN formats.
struct Country {
  std::string_view code;
  std::size_t length;
};
constexpr std::array kCountries = std::to_array<Country>({
    {"AD", 24}, {"AE", 23}, {"AL", 28}, {"AT", 20}, {"AZ", 28}, {"BA", 20}, {"BE", 16}, {"BG", 22},
    {"BH", 22}, {"BI", 27}, {"BR", 29}, {"BY", 28}, {"CH", 21}, {"CR", 22}, {"CY", 28}, {"CZ", 24},
    {"DE", 22}, {"DJ", 27}, {"DK", 18}, {"DO", 28}, {"EE", 20}, {"EG", 29}, {"ES", 24}, {"FI", 18},
    {"FK", 18}, {"FO", 18}, {"FR", 27}, {"GB", 22}, {"GE", 22}, {"GI", 23}, {"GL", 18}, {"GR", 27},
    {"GT", 28}, {"HN", 28}, {"HR", 21}, {"HU", 28}, {"IE", 22}, {"IL", 23}, {"IQ", 23}, {"IS", 26},
    {"IT", 27}, {"JO", 30}, {"KW", 30}, {"KZ", 20}, {"LB", 28}, {"LC", 32}, {"LI", 21}, {"LT", 20},
    {"LU", 20}, {"LV", 21}, {"LY", 25}, {"MC", 27}, {"MD", 24}, {"ME", 22}, {"MK", 19}, {"MN", 20},
    {"MR", 27}, {"MT", 31}, {"MU", 30}, {"NI", 28}, {"NL", 18}, {"NO", 15}, {"OM", 23}, {"PK", 24},
    {"PL", 28}, {"PS", 29}, {"PT", 25}, {"QA", 29}, {"RO", 24}, {"RS", 22}, {"RU", 33}, {"SA", 24},
    {"SC", 31}, {"SD", 18}, {"SE", 24}, {"SI", 19}, {"SK", 24}, {"SM", 27}, {"SO", 23}, {"ST", 25},
    {"SV", 28}, {"TL", 23}, {"TN", 24}, {"TR", 26}, {"UA", 29}, {"VA", 22}, {"VG", 24}, {"XK", 20},
    {"YE", 30},
});

bool is_digit(std::uint8_t c) { return c >= '0' && c <= '9'; }
bool is_letter(std::uint8_t c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }

bool passes_luhn(std::span<const std::uint8_t> match) {
  std::size_t count = 0;
  std::uint32_t sum = 0;
  std::uint32_t seen = 0;  // which digits occur
  for (std::size_t i = match.size(); i-- > 0;) {
    if (!is_digit(match[i])) continue;
    const std::uint32_t digit = match[i] - '0';
    const std::uint32_t doubled = digit * 2 > 9 ? digit * 2 - 9 : digit * 2;
    sum += count % 2 == 0 ? digit : doubled;
    seen |= std::uint32_t{1} << digit;
    ++count;
  }
  return count >= 12 && count <= 19 && sum % 10 == 0 && (seen & (seen - 1)) != 0;
}

bool passes_iban(std::span<const std::uint8_t> match) {
  std::array<char, 34> text{};
  std::size_t count = 0;
  for (const std::uint8_t c : match) {
    if (!is_digit(c) && !is_letter(c)) continue;
    if (count == text.size()) return false;
    text[count++] = static_cast<char>(is_letter(c) ? c & ~0x20 : c);
  }
  if (count < 5) return false;
  const std::string_view code(text.data(), 2);
  const auto* const country = std::ranges::find(kCountries, code, &Country::code);
  if (country == kCountries.end() || country->length != count) return false;
  std::uint32_t rest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const char c = text[(i + 4) % count];  // the first four stand last
    rest = c <= '9' ? (rest * 10 + static_cast<std::uint32_t>(c - '0')) % 97
                    : (rest * 100 + static_cast<std::uint32_t>(c - 'A' + 10)) % 97;
  }
  return rest == 1;
}

}  // namespace

bool passes(Validator validator, std::span<const std::uint8_t> match) {
  switch (validator) {
    case Validator::kNone:
      return true;
    case Validator::kLuhn:
      return passes_luhn(match);
    case Validator::kIban:
      return passes_iban(match);
  }
  return false;
}

}  // namespace airi::guard
