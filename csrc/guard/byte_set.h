#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace airi::guard {

// One of 64 bits for a byte, to tell quickly that none of its kind is there: a letter shares it with its
// other case, else bytes that often stand in one text differ.
[[nodiscard]] constexpr std::uint64_t byte_mark(std::uint8_t b) noexcept {
  return std::uint64_t{1} << ((b & 0x1F) | ((b & 0x40) >> 1));
}

// A set of bytes and, beside them, the edge of the text: what stands before its first byte and after its
// last. A value; compares and orders by content.
class ByteSet {
 public:
  constexpr ByteSet() = default;

  static constexpr ByteSet all() {
    ByteSet set = range(0, 255);
    set.edge_ = true;
    return set;
  }
  static constexpr ByteSet range(std::uint8_t first, std::uint8_t last) {
    ByteSet set;
    for (std::size_t b = first; b <= last; ++b) set.words_[b / 64] |= std::uint64_t{1} << (b % 64);
    return set;
  }
  static constexpr ByteSet edge() {
    ByteSet set;
    set.edge_ = true;
    return set;
  }
  // Letters, digits and the underscore of ASCII: what \w means.
  static constexpr ByteSet word() {
    return range('0', '9') | range('A', 'Z') | range('_', '_') | range('a', 'z');
  }

  [[nodiscard]] constexpr bool contains(std::uint8_t b) const noexcept {
    return ((words_[b / 64] >> (b % 64)) & 1) != 0;
  }
  [[nodiscard]] constexpr bool has_edge() const noexcept { return edge_; }
  [[nodiscard]] constexpr bool is_empty() const noexcept { return *this == ByteSet(); }
  [[nodiscard]] constexpr bool is_all() const noexcept { return *this == all(); }
  constexpr void add(std::uint8_t b) noexcept { words_[b / 64] |= std::uint64_t{1} << (b % 64); }

  // The edge is in the complement where it is not in the set.
  constexpr ByteSet operator~() const {
    ByteSet set;
    for (std::size_t i = 0; i < 4; ++i) set.words_[i] = ~words_[i];
    set.edge_ = !edge_;
    return set;
  }
  friend constexpr ByteSet operator|(ByteSet a, const ByteSet& b) {
    for (std::size_t i = 0; i < 4; ++i) a.words_[i] |= b.words_[i];
    a.edge_ = a.edge_ || b.edge_;
    return a;
  }
  friend constexpr ByteSet operator&(ByteSet a, const ByteSet& b) {
    for (std::size_t i = 0; i < 4; ++i) a.words_[i] &= b.words_[i];
    a.edge_ = a.edge_ && b.edge_;
    return a;
  }
  friend constexpr auto operator<=>(const ByteSet&, const ByteSet&) = default;

 private:
  std::array<std::uint64_t, 4> words_{};
  bool edge_ = false;
};

}  // namespace airi::guard
