#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kv/hash_chain.h"
#include "kv/kv_events.h"
#include "runtime_config.h"
#include "sched/step_time.h"
#include "sim/workload.h"

namespace airi {

// What routers know of the fleet besides what they sent it.
struct RouterOptions {
  std::size_t replicas = 1;
  std::int32_t part_tokens = 0;  // of a part of a prompt
  std::int64_t kv_tokens = 0;    // that a replica's memory holds
  double load_guard = 1.5;       // times the mean load, see PrefixRouter and route::ReplicaRouter
  // For the router that hears its replicas.
  ModelConfig model = {};
  HashKey hash_key{};
  std::array<StepTimePiece, 2> step_time = {};
};

// A request got its first token, or ended, also one that was refused.
struct RequestNews {
  RequestId id{};
  bool has_ended = false;
  std::int32_t output_tokens = 0;
};

// What a replica has to tell since it was asked last.
struct ReplicaNews {
  std::vector<KvEvent> kv;
  bool is_snapshot = false;  // `kv` is all there is: events were missed
  std::vector<RequestNews> requests;
};

// Chooses the replica of each request. Never sees what a request will generate, nor inside a replica.
//
// Thread safety: none.
class Router {
 public:
  virtual ~Router() = default;

  // `load` is how many requests each replica has accepted and not ended. REQUIRES: one per replica.
  [[nodiscard]] virtual std::size_t pick(const TraceRequest& request, std::span<const std::int64_t> load) = 0;

  // True iff pick() looks at `load`.
  [[nodiscard]] virtual bool looks_at_load() const noexcept { return true; }

  // Called for every replica before each pick() where hears_replicas() of the router's name.
  virtual void hear(std::size_t /*replica*/, const ReplicaNews& /*news*/) {}
};

// One after the other.
class RoundRobinRouter : public Router {
 public:
  explicit RoundRobinRouter(const RouterOptions& options) : replicas_(options.replicas) {}
  std::size_t pick(const TraceRequest& request, std::span<const std::int64_t> load) override;
  [[nodiscard]] bool looks_at_load() const noexcept override { return false; }

 private:
  std::size_t replicas_;
  std::size_t next_ = 0;
};

// The replica with the fewest requests; of several, the one that was chosen longest ago.
class LeastLoadedRouter : public Router {
 public:
  explicit LeastLoadedRouter(const RouterOptions& options) : chosen_(options.replicas) {}
  std::size_t pick(const TraceRequest& request, std::span<const std::int64_t> load) override;

 private:
  std::vector<std::int64_t> chosen_;  // when, by the count of choices
  std::int64_t now_ = 0;
};

// The names of all routers, comma-separated order of the documentation.
[[nodiscard]] std::span<const std::string_view> router_names() noexcept;

// True for the router that is told what happens in replicas.
[[nodiscard]] bool hears_replicas(std::string_view name) noexcept;

// Throws InvalidArgument for an unknown name, saying which are known.
[[nodiscard]] std::unique_ptr<Router> make_router(std::string_view name, const RouterOptions& options);

}  // namespace airi
