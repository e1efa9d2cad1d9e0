#include "sim/prefix_router.h"

#include <algorithm>
#include <numeric>

namespace airi {
namespace {

// The finaliser of splitmix64.
std::uint64_t mix(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

}  // namespace

PrefixRouter::PrefixRouter(const RouterOptions& options)
    : load_guard_(options.load_guard), least_loaded_(options) {
  const auto capacity = static_cast<std::size_t>(options.kv_tokens / options.part_tokens);
  for (std::size_t i = 0; i < options.replicas; ++i) sent_.emplace_back(capacity);
}

void PrefixRouter::hash_parts(const TraceRequest& request) {
  chain_.clear();
  std::uint64_t hash = 0;
  for (const std::int64_t id : request.parts) {
    hash = mix(hash + 0x9E3779B97F4A7C15ULL + static_cast<std::uint64_t>(id));
    chain_.push_back(hash);
  }
}

std::size_t PrefixRouter::match(const RecentSet& sent) const {
  const auto missing = std::ranges::find_if(chain_, [&](std::uint64_t key) { return !sent.contains(key); });
  return static_cast<std::size_t>(missing - chain_.begin());
}

std::size_t PrefixRouter::pick(const TraceRequest& request, std::span<const std::int64_t> load) {
  hash_parts(request);
  const auto total = static_cast<double>(std::reduce(load.begin(), load.end(), std::int64_t{0}));
  const double limit = load_guard_ * total / static_cast<double>(load.size()) + kSlack;
  std::size_t best = 0;
  std::size_t longest = 0;
  for (std::size_t i = 0; i < load.size() && !chain_.empty(); ++i) {
    if (static_cast<double>(load[i]) > limit) continue;
    const std::size_t length = match(sent_[i]);
    if (length < longest || (length == longest && load[i] >= load[best])) continue;
    best = i;
    longest = length;
  }
  if (longest == 0) best = least_loaded_.pick(request, load);
  // Last part first: of one prompt, the deeper prefix is forgotten earlier.
  for (auto key = chain_.rbegin(); key != chain_.rend(); ++key) sent_[best].touch(*key);
  return best;
}

}  // namespace airi
