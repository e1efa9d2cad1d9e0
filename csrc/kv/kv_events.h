#pragma once

#include <cstdint>
#include <vector>

#include "base/broadcast_ring.h"
#include "base/ids.h"
#include "kv/hash_chain.h"

namespace airi {

// Where KV lies. Numbers never change: readers keep them.
enum class KvTier : std::int32_t { kDevice = 0, kHost = 1, kDisk = 2 };

// Numbers never change.
enum class KvEventKind : std::int32_t {
  kStored = 1,   // the first block of this hash is in the tier
  kRemoved = 2,  // the last one has left it
};

// What became of the blocks of one hash in one tier. Holds no token and no count of hits.
struct KvEvent {
  Hash128 hash;
  Hash128 parent;  // of the block before it, the chain's root for the first of a prompt; zero if removed
  KvEventKind kind = KvEventKind::kStored;
  KvTier tier{};
  ModelId model{};
  std::int32_t num_tokens = 0;  // in a block of the model
};

using KvEventRing = BroadcastRing<KvEvent>;

// One model's way to the ring of events. Without a ring nothing is told, at the cost of a branch.
//
// Whoever starts from nothing and applies every event, adding a hash when it is stored and dropping
// it when it is removed, has the set of hashes of each tier. Who missed events starts again from a
// snapshot: stored events of all there is, and the cursor of what comes after them.
//
// Thread safety: none; the ring's writer owns it.
class KvEventSink {
 public:
  KvEventSink() = default;
  // `ring` may be null; else it must outlive the sink.
  KvEventSink(KvEventRing* ring, ModelId model, std::int32_t num_tokens) noexcept
      : ring_(ring != nullptr && ring->enabled() ? ring : nullptr), model_(model), num_tokens_(num_tokens) {}

  [[nodiscard]] bool enabled() const noexcept { return ring_ != nullptr; }
  [[nodiscard]] KvEvent event(KvEventKind kind, KvTier tier, const Hash128& hash,
                              const Hash128& parent) const noexcept {
    return {hash, parent, kind, tier, model_, num_tokens_};
  }

  // Tells of a hash that a tier now has, or has no more. REQUIRES: enabled().
  void stored(KvTier tier, const Hash128& hash, const Hash128& parent) const noexcept {
    ring_->push(event(KvEventKind::kStored, tier, hash, parent));
  }
  void removed(KvTier tier, const Hash128& hash) const noexcept {
    ring_->push(event(KvEventKind::kRemoved, tier, hash, {}));
  }

 private:
  KvEventRing* ring_ = nullptr;
  ModelId model_{};
  std::int32_t num_tokens_ = 0;
};

// All hashes of one model as stored events, parents before their children.
struct KvSnapshot {
  std::uint64_t cursor = 0;  // of the first event that it does not cover
  std::vector<KvEvent> stored;
};

}  // namespace airi
