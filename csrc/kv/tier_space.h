#pragma once

#include <cstdint>
#include <vector>

namespace airi {

// A contiguous part of a tier, in granules.
struct TierRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  friend bool operator==(const TierRange&, const TierRange&) = default;

  // Where each of the blocks starts that fit.
  [[nodiscard]] std::vector<std::int64_t> slots(std::int64_t granules_per_block) const;
};

// Which granules of one tier no model has. Never touches memory.
//
// Thread safety: none.
// Invariant: FREE ranges are sorted, not empty, and neither overlap nor touch.
class TierSpace {
 public:
  explicit TierSpace(std::int64_t granules);

  // The beginning of the first FREE range that is large enough, or else all of the largest one; empty where
  // nothing is FREE. REQUIRES: most >= 0.
  [[nodiscard]] TierRange take(std::int64_t most);
  // REQUIRES: it was taken, and not given back since.
  void give_back(const TierRange& range);

  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] const std::vector<TierRange>& free() const noexcept { return free_; }

 private:
  std::int64_t size_;
  std::vector<TierRange> free_;
};

}  // namespace airi
