#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/time.h"
#include "kv/block_pool.h"
#include "kv/memory_op.h"
#include "kv/slab_arena.h"

namespace airi {

// A model as the exchange sees it: a pool whose slabs may move, and what its requests need.
class SlabHolder {
 public:
  virtual ~SlabHolder() = default;
  [[nodiscard]] virtual BlockPool& slab_pool() noexcept = 0;
  // Of the blocks that are available, how many are promised to running requests.
  [[nodiscard]] virtual std::int32_t num_promised() const noexcept = 0;
  // Blocks that its requests need in all, running and waiting.
  [[nodiscard]] virtual std::int64_t num_wanted() const noexcept = 0;
  // True iff a request of it runs.
  [[nodiscard]] virtual bool is_running() const noexcept = 0;
  // Takes requests off the device until none holds a block of the slab and what is available
  // without it covers the promises. Blocks that a transfer writes stay ACTIVE until it has ended.
  virtual void vacate(SlabId slab, TimePoint now) = 0;

 protected:
  SlabHolder() = default;
  SlabHolder(const SlabHolder&) = default;
  SlabHolder& operator=(const SlabHolder&) = default;
};

// Moves slabs between the pools of models that share an arena: on demand of one that runs out, never
// otherwise. What is FREE goes first; then what others have beyond their targets and do not use, of
// the model most beyond it the slab with the fewest CACHED blocks that it has had longest. Where all
// are in use, those drain. Requests are taken off for memory only where the owner has more than its
// minimum and the one that asks less.
//
// A slab stays with its owner for the hysteresis, so that it does not go to and fro, unless the
// one that asks runs nothing or has less than its minimum.
//
// Thread safety: none.
// Invariant: a pool has exactly the KV slabs that its model owns, and available blocks for all it
// promised; what a slab holds of another owner is zeroed by an operation before any step reads it.
class SlabExchange {
 public:
  // Throws InvalidArgument unless 0 <= hysteresis <= kMaxMicros.
  SlabExchange(SlabArena& arena, Micros hysteresis);

  // Takes part from now on, or no more (null). The model's pool has the shape of the arena.
  void attach(ModelId model, SlabHolder* holder);

  // Gives `model` slabs for `blocks` more blocks, as far as it may have them; where it has to wait for
  // some, all that are due to it begin to drain. True iff it got one. Adds zeroing to `ops`, as many as have
  // room. O(models * slabs).
  bool grow(ModelId model, std::int32_t blocks, TimePoint now, MemoryOps& ops);

  // Makes FREE what has drained.
  void collect_drained();

  // All KV slabs of `model` become FREE. REQUIRES: none of its blocks is ACTIVE.
  void lend(ModelId model);
  // Makes the slab FREE, whoever has it, and takes their requests off. False where a transfer still
  // writes to it: it drains. REQUIRES: it holds no weights.
  [[nodiscard]] bool try_clear(SlabId slab, TimePoint now);

  // True iff the model asked for slabs that it may have and has not got them: they are due to it, or others
  // want them yet.
  [[nodiscard]] bool waits(ModelId model) const noexcept {
    return index(model) < is_short_.size() && is_short_[index(model)];
  }

  // How often slabs went from one model to another, and how often requests had to go for it.
  [[nodiscard]] std::int64_t num_reclaims() const noexcept { return num_reclaims_; }
  [[nodiscard]] std::int64_t num_vacates() const noexcept { return num_vacates_; }

  // Throws InvariantError naming the first broken invariant. O(slabs).
  void check_invariants() const;

 private:
  enum class Purpose : std::uint8_t {
    kTake,    // none of its blocks is ACTIVE
    kDrain,   // some are
    kVacate,  // whatever they are: requests will be taken off
  };

  [[nodiscard]] SlabHolder& holder(ModelId model) const { return *holders_[index(model)]; }
  [[nodiscard]] std::int32_t target(ModelId model) const noexcept { return targets_[index(model)]; }
  // Slabs for all that it wants, and for `more` blocks beside those it has.
  [[nodiscard]] static std::int64_t wanted_slabs(SlabHolder& holder, std::int32_t more);
  // True iff what is available without the slab covers the promises.
  [[nodiscard]] static bool has_room_without(SlabId slab, const BlockPool& pool, std::int32_t promised);
  [[nodiscard]] bool others_wait(ModelId model) const noexcept;

  void refresh_targets(ModelId asking, std::int32_t blocks);
  // Into donors_: who has more than its target, or than its minimum, most beyond its target first.
  void rank_donors(ModelId asking, bool keeps_target);
  // The slab of `owner` with the fewest ACTIVE, then CACHED blocks that it has had longest, and for
  // `resting` at least.
  [[nodiscard]] std::optional<SlabId> choose(ModelId owner, Purpose purpose, Micros resting,
                                             TimePoint now) const;
  [[nodiscard]] bool try_take_one(ModelId model, std::int32_t missing, TimePoint now, MemoryOps& ops);
  [[nodiscard]] std::optional<SlabId> reclaim(ModelId model, TimePoint now);
  [[nodiscard]] std::optional<SlabId> vacate_one(ModelId model, TimePoint now);
  void drain_for(ModelId model, std::int32_t missing, TimePoint now);
  void release(SlabId slab);

  SlabArena& arena_;
  Micros hysteresis_;
  std::vector<SlabHolder*> holders_;       // by model; null: takes no part
  std::vector<std::int32_t> num_missing_;  // slabs due to a model that asked for some in vain
  std::vector<bool> is_short_;             // a model that asked for more than it got and may have
  std::vector<std::int64_t> wanted_;       // scratch: slabs by model
  std::vector<std::int32_t> targets_;      // of the latest grow()
  std::vector<ModelId> donors_;            // scratch
  std::int64_t num_reclaims_ = 0;
  std::int64_t num_vacates_ = 0;
};

}  // namespace airi
