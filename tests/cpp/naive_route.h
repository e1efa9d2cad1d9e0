#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "random.h"
#include "route/replica_router.h"

namespace airi::testing {

using NaiveHash = std::pair<std::uint64_t, std::uint64_t>;

inline NaiveHash naive(const Hash128& hash) { return {hash.lo, hash.hi}; }

inline constexpr std::int32_t kBlock = 4;  // tokens
inline constexpr ModelId kModel{3};

[[nodiscard]] KvEvent event_of(KvEventKind kind, KvTier tier, const Hash128& hash, ModelId model = kModel);
[[nodiscard]] inline KvEvent stored(const Hash128& hash, KvTier tier = KvTier::kDevice) {
  return event_of(KvEventKind::kStored, tier, hash);
}
[[nodiscard]] inline KvEvent removed(const Hash128& hash, KvTier tier = KvTier::kDevice) {
  return event_of(KvEventKind::kRemoved, tier, hash);
}
[[nodiscard]] std::vector<KvEvent> all_stored(const std::vector<Hash128>& chain);

// The chain of a prompt with up to `most` blocks out of so many kinds: equal beginnings have equal hashes.
[[nodiscard]] std::vector<Hash128> draw_chain(Random& random, std::int32_t most, std::int32_t kinds);
// A chain that shares nothing with those of other numbers.
[[nodiscard]] std::vector<Hash128> numbered(std::uint64_t from, std::uint64_t count);

// What route::BlockLocations should know of one replica, as sets.
struct NaiveBlocks {
  std::array<std::set<NaiveHash>, 3> stored;  // by tier
  std::set<NaiveHash> sent;
  std::size_t capacity = 0;
  std::int64_t left_out = 0;

  [[nodiscard]] bool has(const NaiveHash& hash) const;
  [[nodiscard]] std::size_t num_stored() const;
  void apply(const KvEvent& event);
  [[nodiscard]] route::PrefixMatch match(std::span<const Hash128> chain) const;
};

// What route::ReplicaRouter should answer, from lists that are looked through anew for each question. It
// shares the options and the types of answers, no arithmetic.
class NaiveRouter {
 public:
  explicit NaiveRouter(const route::RouterOptions& options) : options_(options) {}

  void add(route::ReplicaId id, const route::ReplicaOptions& options);
  void drain(route::ReplicaId id) { replicas_.at(id).is_draining = true; }
  void remove(route::ReplicaId id);
  void sleep(route::ReplicaId id, Micros wake_us);
  void wake(route::ReplicaId id);
  void count(route::ReplicaId id, const route::EngineCounts& counts);
  void apply(route::ReplicaId id, std::span<const KvEvent> events);
  void replace(route::ReplicaId id, std::span<const KvEvent> stored);
  [[nodiscard]] std::vector<route::Candidate> candidates(const route::RouteRequest& request, TimePoint now);
  [[nodiscard]] std::optional<route::ReplicaId> choose(const route::RouteRequest& request, TimePoint now);
  void sent(RequestId id, route::ReplicaId replica, const route::RouteRequest& request, TimePoint now);
  bool first_token(RequestId id);
  bool ended(RequestId id, std::int32_t output_tokens);
  [[nodiscard]] const NaiveBlocks& blocks(route::ReplicaId id) const { return replicas_.at(id).blocks; }

 private:
  struct Replica {
    route::ReplicaOptions options;
    NaiveBlocks blocks;
    bool is_draining = false;
    std::optional<Micros> wake_us = {};
    std::optional<TimePoint> wakes_at = {};
    std::int64_t last_sent = 0;
    route::EngineCounts others = {};
  };
  // In order of sending, never taken out.
  struct Sent {
    route::ReplicaId replica{};
    TimePoint expires{};
    std::vector<NaiveHash> hashes;
    bool is_dropped = false;
  };
  struct Live {
    RequestId id{};
    route::ReplicaId replica{};
    std::size_t sent = 0;
    std::int32_t input_tokens = 0;
    std::int32_t cached = 0;
    std::int32_t arrived = 0;
    bool is_decoding = false;
  };

  [[nodiscard]] route::Candidate judge(route::ReplicaId id, const route::RouteRequest& request,
                                       TimePoint now);
  void take_back(Sent& sent);
  void drop_old(TimePoint now);
  void drop_beyond_limit();

  route::RouterOptions options_;
  std::map<route::ReplicaId, Replica> replicas_;
  std::vector<Sent> sent_;
  std::vector<Live> live_;  // in order of sending
  std::int64_t num_sent_ = 0;
  double mean_input_ = 0, mean_tokens_ = 0, mean_pairs_ = 0, mean_output_ = 128;
};

}  // namespace airi::testing
