#include "sim/locality_router.h"

#include <algorithm>

#include "base/check.h"

namespace airi {

LocalityRouter::LocalityRouter(const RouterOptions& options)
    : part_tokens_(options.part_tokens),
      caches_prefixes_(options.model.enable_prefix_caching),
      chain_(options.hash_key, options.model.hash_seed, options.model.block_size),
      router_({.block_size = options.model.block_size, .load_guard = options.load_guard}) {
  const route::ReplicaOptions replica{
      .model = ModelId{0},
      .capacity_blocks = options.kv_tokens / options.model.block_size,
      .rates = {.pieces = options.step_time, .max_batch_tokens = options.model.max_batch_tokens}};
  for (std::size_t i = 0; i < options.replicas; ++i) ids_.push_back(router_.add(replica));
}

std::size_t LocalityRouter::pick(const TraceRequest& request, std::span<const std::int64_t> /*load*/) {
  hashes_.clear();
  // Without prefix caching nothing that was sent is ever hit.
  if (caches_prefixes_) chain_.extend(prompt_tokens(request, part_tokens_), {}, hashes_);
  const route::RouteRequest routed{.chain = hashes_, .input_tokens = std::max(request.input_tokens, 1)};
  const auto choice = router_.choose(routed, request.arrival);
  AIRI_CHECK(choice) << "replicas of a simulation are always there";
  router_.sent(request.id, choice->replica, routed, request.arrival);
  return static_cast<std::size_t>(std::ranges::find(ids_, choice->replica) - ids_.begin());
}

void LocalityRouter::hear(std::size_t replica, const ReplicaNews& news) {
  if (news.is_snapshot) {
    router_.replace(ids_[replica], news.kv);
  } else {
    router_.apply(ids_[replica], news.kv);
  }
  for (const RequestNews& request : news.requests) {
    if (request.has_ended) {
      router_.ended(request.id, request.output_tokens);
    } else {
      router_.first_token(request.id);
    }
  }
}

}  // namespace airi
