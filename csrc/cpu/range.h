#pragma once

#include <cstdint>

namespace airi::cpu {

// [begin, end)
struct Range {
  std::int64_t begin, end;
  [[nodiscard]] constexpr std::int64_t size() const { return end - begin; }
};

// Number `index` of `parts` nearly equal parts of [0, total).
constexpr Range part_of(std::int64_t total, std::int64_t parts, std::int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

}  // namespace airi::cpu
