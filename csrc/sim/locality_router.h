#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kv/hash_chain.h"
#include "route/replica_router.h"
#include "sim/router.h"

namespace airi {

// The product's own router, fed by the replicas' own events: route::ReplicaRouter.
//
// Thread safety: none.
class LocalityRouter : public Router {
 public:
  // Throws InvalidArgument for more replicas than the product's router has.
  explicit LocalityRouter(const RouterOptions& options);
  std::size_t pick(const TraceRequest& request, std::span<const std::int64_t> load) override;
  void hear(std::size_t replica, const ReplicaNews& news) override;

 private:
  // Immutable after construction.
  std::int32_t part_tokens_;
  bool caches_prefixes_;
  HashChain chain_;

  route::ReplicaRouter router_;
  std::vector<route::ReplicaId> ids_;  // by replica
  std::vector<Hash128> hashes_;        // of the request at hand
};

}  // namespace airi
