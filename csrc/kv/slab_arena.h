#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/time.h"

namespace airi {

// Block-table entries count granules of this many bytes from the start of the arena.
inline constexpr std::int64_t kGranuleBytes = 4096;

enum class SlabUse : std::uint8_t { kKv, kWeights };

struct SlabOwner {
  ModelId model{};
  SlabUse use = SlabUse::kKv;
  friend bool operator==(const SlabOwner&, const SlabOwner&) = default;
};

// How many KV slabs a model may count on, may have, and its part of what is beyond the minima.
struct SlabLimits {
  std::int32_t min = 0;
  std::int32_t max = 0;
  double weight = 1.0;
};

// Who owns which slab of one device's arena, and how many each model should have. Computes where
// blocks lie; never touches the arena's memory, never knows which blocks are in use.
//
// Thread safety: none.
// Invariant: every slab is FREE or has one owner; no model owns more KV slabs than its max; the
// minima of models that are awake, and all weights, fit the arena together.
class SlabArena {
 public:
  // Throws InvalidArgument unless slab_bytes is a positive multiple of the granule, the arena
  // holds at least one slab, and every offset in granules fits 31 bits.
  SlabArena(std::int64_t arena_bytes, std::int64_t slab_bytes);

  [[nodiscard]] std::int32_t num_slabs() const noexcept { return static_cast<std::int32_t>(slabs_.size()); }
  [[nodiscard]] std::int32_t num_free() const noexcept { return num_free_; }
  [[nodiscard]] std::int64_t slab_bytes() const noexcept { return slab_bytes_; }
  [[nodiscard]] std::optional<SlabOwner> owner(SlabId slab) const { return slabs_.at(index(slab)).owner; }
  // When its present or latest owner got it.
  [[nodiscard]] TimePoint moved_at(SlabId slab) const { return slabs_.at(index(slab)).moved_at; }

  // A further model, with `num_weights` slabs of weights to come; ids count up from 0. Throws
  // InvalidArgument for limits that cannot be kept beside those of the others.
  ModelId add_model(const SlabLimits& limits, std::int32_t num_weights);
  // REQUIRES: it owns no slab. Its id is not given again.
  void remove_model(ModelId model);
  // Asleep, a model has no minimum and no demand; its weights still count for what must fit.
  void set_awake(ModelId model, bool is_awake);

  [[nodiscard]] const SlabLimits& limits(ModelId model) const { return models_.at(index(model)).limits; }
  // What others must leave it now: its minimum, while it is awake.
  [[nodiscard]] std::int32_t min_of(ModelId model) const {
    return models_.at(index(model)).is_awake ? limits(model).min : 0;
  }
  [[nodiscard]] std::int32_t num_owned(ModelId model) const { return models_.at(index(model)).num_kv; }

  // The KV slabs that each model should have, by model: its min, and its part by weight of the
  // rest, up to what it `wants`; nobody's part is smaller for another's want. Valid until the next
  // call. O(models squared).
  std::span<const std::int32_t> targets(std::span<const std::int64_t> wanted);
  // The target of a model while all others want everything: never more than its target where it wants that.
  [[nodiscard]] std::int32_t guaranteed(ModelId model) const;

  // A FREE slab for `owner`: one that it had last, else the lowest. O(slabs).
  [[nodiscard]] std::optional<SlabId> find_free(const SlabOwner& owner) const noexcept;

  // Gives a FREE slab away. True iff it holds what another owner, or another use, left there.
  bool give(SlabId slab, const SlabOwner& owner, TimePoint now);
  // Makes a slab FREE. REQUIRES: it has an owner.
  void take_back(SlabId slab);

  // The block-table entries of the blocks of the given slabs, each packed from its start. Throws
  // InvalidArgument unless bytes_per_block is a positive multiple of the granule that fits a slab.
  [[nodiscard]] std::vector<std::int32_t> block_entries(std::span<const SlabId> slabs,
                                                        std::int64_t bytes_per_block) const;
  [[nodiscard]] std::int32_t blocks_per_slab(std::int64_t bytes_per_block) const;
  // KV slabs of `model`, ascending.
  [[nodiscard]] std::vector<SlabId> owned_by(ModelId model) const;

  // Throws InvariantError naming the first broken invariant.
  void check_invariants() const;

 private:
  struct Slab {
    std::optional<SlabOwner> owner;
    std::optional<SlabOwner> last_owner;  // whose bytes it holds
    TimePoint moved_at{-kMaxMicros};
  };
  struct Model {
    SlabLimits limits;
    std::int64_t weight = 0;  // limits.weight in 10^-9
    std::int32_t num_weights = 0;
    std::int32_t num_kv = 0;  // slabs it owns
    bool is_awake = true;
    bool is_removed = false;
  };

  // Slabs that minima of models awake and all weights leave to be shared.
  [[nodiscard]] std::int64_t surplus() const noexcept;

  std::int64_t slab_bytes_;
  std::vector<Slab> slabs_;
  std::vector<Model> models_;
  std::vector<std::int32_t> targets_;
  std::vector<char> is_settled_;  // scratch of targets()
  std::int32_t num_free_;
};

}  // namespace airi
