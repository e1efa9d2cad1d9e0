#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "route/block_locations.h"
#include "route/sent_blocks.h"
#include "route/step_rates.h"

namespace airi::route {

// What an engine counts for its model, whoever sent it.
struct EngineCounts {
  std::int64_t waiting = 0;
  std::int64_t running = 0;  // computing their prompts, or decoding
};

// What replicas have yet to do: the requests that were sent to them and have not ended, and, where an engine
// counts more than those, others like them.
//
// Thread safety: none.
// Invariant: a request is outstanding in one replica; a replica's sums are those of its requests.
class Outstanding {
 public:
  // Prompts of one replica that are looked at for what is computed of them, the oldest ones: an engine
  // computes few at a time.
  static constexpr std::size_t kMostFollowed = 8;

  // `sent` must outlive this.
  Outstanding(const SentBlocks& sent, std::int32_t block_size) : sent_(sent), block_size_(block_size) {}
  Outstanding(const Outstanding&) = delete;
  Outstanding& operator=(const Outstanding&) = delete;

  [[nodiscard]] bool contains(RequestId id) const { return requests_.contains(id); }

  // A request went to a replica, whose tokens but the first `cached` are to be computed; `blocks` are those
  // that it brings. REQUIRES: it is not outstanding.
  void add(RequestId id, ReplicaSlot replica, std::int32_t input_tokens, std::int32_t cached, SentId blocks);
  // Its prompt is computed. False where it is not outstanding.
  bool note_first_token(RequestId id);
  // The blocks of a request that ended before its first token: it will not bring them.
  struct Ended {
    bool was_outstanding = false;
    bool brought_all = false;
    SentId blocks{};
  };
  // `output_tokens`: what it generated.
  Ended end(RequestId id, std::int32_t output_tokens);
  // The replica is gone, and its requests with it. O(requests).
  void forget(ReplicaSlot replica);

  // Counts what has arrived of the blocks that the replica's prompts bring.
  void follow(ReplicaSlot replica);
  // Takes what the engine counts beyond our own as others', until it counts again.
  void count(ReplicaSlot replica, const EngineCounts& counts);

  // Prompt tokens to be computed, and streams that run; with others', as large as ours are in the mean.
  [[nodiscard]] PrefillWork prefill(ReplicaSlot replica) const noexcept;
  [[nodiscard]] DecodeSet decodes(ReplicaSlot replica) const noexcept;
  [[nodiscard]] std::int64_t num_requests(ReplicaSlot replica) const noexcept;
  // What a request generates in the mean, of those that ended lately. Some guess before the first one.
  [[nodiscard]] double mean_output() const noexcept { return mean_output_; }

  // Throws InvariantError naming the first broken invariant. O(requests).
  void check_invariants() const;

 private:
  struct Request {
    ReplicaSlot replica{};
    SentId blocks{};
    std::int32_t input_tokens = 0;
    std::int32_t cached = 0;
    std::size_t arrived = 0;  // of the blocks that it brings
    bool is_decoding = false;
  };
  struct Replica {
    PrefillWork prefill;
    DecodeSet decodes;
    std::deque<RequestId> prompts;  // without a first token, oldest first
    EngineCounts others;
  };

  [[nodiscard]] PrefillWork rest(const Request& request) const noexcept;
  [[nodiscard]] std::int64_t num_own(const Replica& replica) const noexcept;
  void change_prefill(Replica& replica, const PrefillWork& from, const PrefillWork& to);
  void leave_prompts(RequestId id, const Request& request);

  // Immutable after construction.
  const SentBlocks& sent_;
  std::int32_t block_size_;

  std::unordered_map<RequestId, Request> requests_;
  std::array<Replica, kMaxReplicas> replicas_;
  // Fading means over requests.
  double mean_input_ = 0;
  double mean_tokens_ = 0;  // to be computed
  double mean_pairs_ = 0;
  double mean_output_ = 128;
};

}  // namespace airi::route
