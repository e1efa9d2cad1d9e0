#include "kv/tier_space.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace airi {

std::vector<std::int64_t> TierRange::slots(std::int64_t granules_per_block) const {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 4;
  const std::int64_t blocks = std::min(count / granules_per_block, kMost);
  std::vector<std::int64_t> starts;
  starts.reserve(static_cast<std::size_t>(blocks));
  for (std::int64_t i = 0; i < blocks; ++i) starts.push_back(first + i * granules_per_block);
  return starts;
}

TierSpace::TierSpace(std::int64_t granules) : size_(granules) {
  if (granules > 0) free_.push_back({.first = 0, .count = granules});
}

TierRange TierSpace::take(std::int64_t most) {
  if (free_.empty() || most == 0) return {};
  auto from = std::ranges::find_if(free_, [=](const TierRange& range) { return range.count >= most; });
  if (from == free_.end()) from = std::ranges::max_element(free_, {}, &TierRange::count);
  const TierRange taken{.first = from->first, .count = std::min(from->count, most)};
  from->first += taken.count;
  from->count -= taken.count;
  if (from->count == 0) free_.erase(from);
  return taken;
}

void TierSpace::give_back(const TierRange& range) {
  if (range.count == 0) return;
  const auto next = std::ranges::upper_bound(free_, range.first, {}, &TierRange::first);
  const auto before = next == free_.begin() ? free_.end() : next - 1;
  AIRI_CHECK(next == free_.end() || range.first + range.count <= next->first) << "granules are FREE already";
  AIRI_CHECK(before == free_.end() || before->first + before->count <= range.first)
      << "granules are FREE already";
  const auto own = free_.insert(next, range);
  if (own + 1 != free_.end() && own->first + own->count == (own + 1)->first) {
    own->count += (own + 1)->count;
    free_.erase(own + 1);
  }
  if (own != free_.begin() && (own - 1)->first + (own - 1)->count == own->first) {
    (own - 1)->count += own->count;
    free_.erase(own);
  }
}

}  // namespace airi
