#pragma once

#include <cstdint>
#include <span>

namespace airi::testing {

// Hands out bytes; zeros once they are used up.
class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  [[nodiscard]] bool empty() const { return bytes_.empty(); }

  // In [0, bound). REQUIRES: bound <= 256.
  std::int32_t below(std::int32_t bound) {
    if (bytes_.empty()) return 0;
    const std::int32_t value = bytes_.front() % bound;
    bytes_ = bytes_.subspan(1);
    return value;
  }
  // True for one byte in `of`; false once they are used up.
  bool one_in(std::int32_t of) { return below(of) == of - 1; }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace airi::testing
