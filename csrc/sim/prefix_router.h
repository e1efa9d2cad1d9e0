#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/recent_set.h"
#include "sim/router.h"

namespace airi {

// The replica that was sent the longest prefix of the prompt before, among those whose load is at most
// load_guard * mean + kSlack; of equals, the least loaded one. It remembers per replica as many parts as fit
// the replica's memory, the least recently sent ones going first, and hears nothing from replicas.
//
// Thread safety: none.
// Invariant: no choice raises the load of a replica beyond load_guard * mean + kSlack + 1.
class PrefixRouter : public Router {
 public:
  static constexpr double kSlack = 4;

  explicit PrefixRouter(const RouterOptions& options);
  std::size_t pick(const TraceRequest& request, std::span<const std::int64_t> load) override;

 private:
  void hash_parts(const TraceRequest& request);
  [[nodiscard]] std::size_t match(const RecentSet& sent) const;

  double load_guard_;
  LeastLoadedRouter least_loaded_;
  std::vector<RecentSet> sent_;       // by replica: prefixes, each as the hash of its parts
  std::vector<std::uint64_t> chain_;  // of the request at hand: hash of parts [0, i]
};

}  // namespace airi
