#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/time.h"
#include "kv/hash_chain.h"
#include "kv/kv_events.h"
#include "route/block_locations.h"
#include "route/outstanding.h"
#include "route/sent_blocks.h"
#include "route/step_rates.h"

namespace airi::route {

// A replica; counts up, and is not given again.
enum class ReplicaId : std::int64_t {};

struct RouterOptions {
  std::int32_t block_size = 16;
  // Replicas with more outstanding work than this many times the mean, and what the request takes where it
  // takes the most, are left out.
  double load_guard = 1.5;
  // How long, and how many of all, blocks that were sent and not told to be stored count.
  Micros sent_ttl = 60'000'000;
  std::int64_t sent_blocks = std::int64_t{1} << 20;
};

struct ReplicaOptions {
  ModelId model{};                   // its number in the replica's engine: events of others are skipped
  std::int64_t capacity_blocks = 0;  // hashes that are kept of it: what fits its memory, tiers included
  StepRates rates;
};

// One request, as far as its route depends on it.
struct RouteRequest {
  std::span<const Hash128> chain;  // of full blocks, from the first one on, as HashChain makes them
  std::int32_t input_tokens = 0;
};

// Why one replica was chosen, or not. Times are microseconds.
struct Candidate {
  ReplicaId replica{};
  std::int32_t stored_tokens = 0;  // of the prompt, as its events tell
  std::int32_t cached_tokens = 0;  // with those that were sent before; the last token is computed anyway
  std::int64_t outstanding_requests = 0;
  std::int64_t outstanding_tokens = 0;  // of prompts, to be computed
  double load_us = 0;                   // what all that is outstanding takes
  double wake_us = 0;                   // until it is awake
  double wait_us = 0;                   // for prompts that are outstanding
  double prefill_us = 0;                // for the rest of this prompt
  double delay_us = 0;                  // that it brings to others, see choose()
  std::int64_t last_sent = 0;           // when it was sent a request, by the count of requests; 0 never
  bool is_overloaded = false;           // left out

  [[nodiscard]] double ttft_us() const noexcept { return wake_us + wait_us + prefill_us; }
  [[nodiscard]] double score_us() const noexcept { return ttft_us() + delay_us; }
};

struct Choice {
  ReplicaId replica{};
  std::vector<Candidate> candidates;  // all that take requests
};

// Chooses the replica of one model for each request: where its first token is predicted to come out first,
// plus the delay that it brings to others, by what replicas are known to have cached and what they have yet
// to do. Of equals the least loaded one, then the one that was sent something longest ago. The same calls
// give the same choices.
//
// Thread safety: none.
// Invariant: a replica that drains, or is gone, is never chosen; nor one whose load is above load_guard times
// the mean plus what the request takes where it takes the most.
class ReplicaRouter {
 public:
  // Throws InvalidArgument naming the first setting that cannot work, with its value.
  explicit ReplicaRouter(const RouterOptions& options);
  ReplicaRouter(const ReplicaRouter&) = delete;
  ReplicaRouter& operator=(const ReplicaRouter&) = delete;

  // Replicas come and go. All but add() throw InvalidArgument for a replica that is not there. add() throws
  // for a setting that cannot work, and where there are kMaxReplicas.
  ReplicaId add(const ReplicaOptions& options);
  // It gets no more requests; those that it has count until they end.
  void drain(ReplicaId replica);
  // It is gone, or dead: forgets it with its requests, and frees what was kept of it. O(memory).
  void remove(ReplicaId replica);
  // It sleeps, and the first request that is sent to it wakes it, which takes so long.
  void sleep(ReplicaId replica, Micros wake_us);
  // It is awake.
  void wake(ReplicaId replica);
  // What it has learnt of its step times.
  void set_rates(ReplicaId replica, const StepRates& rates);
  // What its engine counts now.
  void count(ReplicaId replica, const EngineCounts& counts);

  // What its engine's ring of events tells, in order. O(1) each, amortised.
  void apply(ReplicaId replica, std::span<const KvEvent> events);
  // Events were missed: forgets what it has stored, and takes what a KvSnapshot holds instead. O(memory).
  void replace(ReplicaId replica, std::span<const KvEvent> stored);

  // The replica to send the request to, or nothing where none takes requests. The delay that counts beside
  // the time to its own first token is that of whoever is sent there next, who waits for this prompt, and
  // what its decode adds to the steps of all streams that run there, over what requests generate in the mean.
  // What others have to pay makes a copy of a prefix dearer than a short wait. Changes nothing but what is
  // too old. Throws InvalidArgument unless the prompt has a token and the chain is no longer than it. O(chain
  // + replicas). `now` is no earlier than in calls before.
  [[nodiscard]] std::optional<Choice> choose(const RouteRequest& request, TimePoint now);

  // The caller tells what it does. Throws InvalidArgument for a request that is outstanding.
  void sent(RequestId id, ReplicaId replica, const RouteRequest& request, TimePoint now);
  // False where the request is not outstanding: it was not told of, has ended, or went with its replica.
  bool first_token(RequestId id) { return outstanding_.note_first_token(id); }
  // For whatever reason.
  bool ended(RequestId id, std::int32_t output_tokens);

  [[nodiscard]] const BlockLocations& locations() const noexcept { return locations_; }
  [[nodiscard]] std::int64_t num_stored(ReplicaId replica) const;
  [[nodiscard]] std::int64_t num_left_out(ReplicaId replica) const;
  // Throws InvariantError naming the first broken invariant. O(memory).
  void check_invariants() const;

 private:
  struct Replica {
    ReplicaId id{};
    ReplicaOptions options;
    bool is_draining = false;
    std::optional<Micros> wake_us = {};      // asleep
    std::optional<TimePoint> wakes_at = {};  // once it was sent something
    std::int64_t last_sent = 0;              // by the count of requests that were sent
  };

  [[nodiscard]] ReplicaSlot slot_of(ReplicaId replica) const;
  [[nodiscard]] Replica& at(ReplicaId replica) { return *replicas_[index(slot_of(replica))]; }
  [[nodiscard]] std::int32_t tokens_of(std::int32_t blocks, const RouteRequest& request) const noexcept;
  [[nodiscard]] Candidate judge(ReplicaSlot slot, const PrefixMatch& match, const RouteRequest& request,
                                TimePoint now) const;
  [[nodiscard]] std::vector<Candidate> candidates(const RouteRequest& request, TimePoint now) const;
  void check(const RouteRequest& request) const;

  // Immutable after construction.
  RouterOptions options_;

  BlockLocations locations_;
  SentBlocks sent_;
  Outstanding outstanding_;
  std::array<std::optional<Replica>, kMaxReplicas> replicas_;
  std::int64_t next_id_ = 0;
  std::int64_t num_sent_ = 0;
};

}  // namespace airi::route
