#include "sim/router.h"

#include <array>
#include <string>
#include <utility>

#include "base/check.h"
#include "sim/locality_router.h"
#include "sim/prefix_router.h"

namespace airi {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"round_robin", "least_loaded", "prefix", "locality"};

}  // namespace

std::size_t RoundRobinRouter::pick(const TraceRequest& /*request*/, std::span<const std::int64_t> /*load*/) {
  const std::size_t chosen = next_;
  next_ = (next_ + 1) % replicas_;
  return chosen;
}

std::size_t LeastLoadedRouter::pick(const TraceRequest& /*request*/, std::span<const std::int64_t> load) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < load.size(); ++i) {
    if (std::pair(load[i], chosen_[i]) < std::pair(load[best], chosen_[best])) best = i;
  }
  chosen_[best] = ++now_;
  return best;
}

std::span<const std::string_view> router_names() noexcept { return kNames; }

bool hears_replicas(std::string_view name) noexcept { return name == kNames[3]; }

std::unique_ptr<Router> make_router(std::string_view name, const RouterOptions& options) {
  if (name == kNames[0]) return std::make_unique<RoundRobinRouter>(options);
  if (name == kNames[1]) return std::make_unique<LeastLoadedRouter>(options);
  if (name == kNames[2]) return std::make_unique<PrefixRouter>(options);
  if (name == kNames[3]) return std::make_unique<LocalityRouter>(options);
  throw InvalidArgument("router must be round_robin, least_loaded, prefix or locality, got '" +
                        std::string(name) + "'");
}

}  // namespace airi
