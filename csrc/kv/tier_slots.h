#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kv/prefix_index.h"

namespace airi {

enum class TierSlot : std::int32_t {};

// Keeps one copy from being evicted; means nothing once the copy is gone.
struct TierPin {
  TierSlot slot{};
  std::uint64_t copy = 0;  // never used twice
};

// The slots of one tier (host or disk) that hold copies of one model's blocks. Knows states and the order
// of use; never touches memory or files.
//
// A slot is FREE, WRITING (a transfer fills it) or READY; a READY one may have readers, transfers that copy
// from it, and pins. READY slots without either are idle: they alone can be evicted, least recently used
// first. A busy slot whose entry is gone is an orphan: no longer found, and FREE when its last transfer ends.
//
// Thread safety: none.
// Invariant: a slot is FREE, idle or busy; idle slots have an entry and stand on the list, others do not.
class TierSlots {
 public:
  // `granules`: where each slot starts.
  explicit TierSlots(std::vector<std::int64_t> granules);

  [[nodiscard]] std::int32_t size() const noexcept { return static_cast<std::int32_t>(granules_.size()); }
  [[nodiscard]] std::int32_t num_free() const noexcept { return static_cast<std::int32_t>(free_.size()); }
  [[nodiscard]] std::int32_t num_idle() const noexcept { return num_idle_; }
  [[nodiscard]] std::int64_t granule(TierSlot slot) const noexcept { return granules_[index(slot)]; }
  // The entry whose copy it holds or is to hold; nothing for FREE slots and orphans.
  [[nodiscard]] std::optional<EntryId> entry(TierSlot slot) const noexcept { return at(slot).entry; }
  // True iff it may be read.
  [[nodiscard]] bool is_ready(TierSlot slot) const noexcept { return at(slot).state == State::kReady; }
  [[nodiscard]] bool is_idle(TierSlot slot) const noexcept {
    return is_ready(slot) && at(slot).readers == 0 && at(slot).pins == 0;
  }
  // The idle slot that was used longest ago, and the next one.
  [[nodiscard]] std::optional<TierSlot> oldest() const noexcept { return listed(nodes_.back().next); }
  [[nodiscard]] std::optional<TierSlot> next_oldest(TierSlot slot) const noexcept {
    return listed(at(slot).next);
  }

  // Takes a FREE slot for a copy of `entry` to be written; nothing where there is none.
  [[nodiscard]] std::optional<TierSlot> try_begin_write(EntryId entry);
  // The copy has arrived: READY, and the newest. An orphan becomes FREE.
  void end_write(TierSlot slot);

  // REQUIRES: is_ready(slot).
  void begin_read(TierSlot slot);
  // A reader is done. The slot's last one makes it the newest, or FREE if it is an orphan.
  void end_read(TierSlot slot);

  // A pinned copy is not evicted until it is unpinned. REQUIRES: the slot has an entry.
  TierPin pin(TierSlot slot);
  void unpin(const TierPin& pin);

  // REQUIRES: is_idle(slot).
  void make_newest(TierSlot slot);
  void make_oldest(TierSlot slot);

  // The copy is not wanted any more: FREE at once if nothing is busy with it, else an orphan. Pins go.
  void drop(TierSlot slot);

  // Throws InvariantError naming the first broken invariant. O(size).
  void check_invariants() const;

 private:
  enum class State : std::uint8_t { kFree, kWriting, kReady };
  struct Node {
    State state = State::kFree;
    std::int32_t readers = 0;
    std::int32_t pins = 0;
    std::uint64_t copy = 0;
    std::optional<EntryId> entry;
    std::int32_t prev = 0, next = 0;  // idle slots, oldest first; the sentinel is nodes_[size()]
  };

  [[nodiscard]] Node& at(TierSlot slot) noexcept { return nodes_[index(slot)]; }
  [[nodiscard]] const Node& at(TierSlot slot) const noexcept { return nodes_[index(slot)]; }
  [[nodiscard]] std::optional<TierSlot> listed(std::int32_t slot) const noexcept {
    return slot == size() ? std::nullopt : std::optional(TierSlot{slot});
  }
  void link_before(std::int32_t slot, std::int32_t next) noexcept;
  void unlink(std::int32_t slot) noexcept;
  void settle(TierSlot slot);
  void make_free(TierSlot slot);

  std::vector<std::int64_t> granules_;
  std::vector<Node> nodes_;
  std::vector<TierSlot> free_;  // last in, first out
  std::int32_t num_idle_ = 0;
  std::uint64_t last_copy_ = 0;
};

}  // namespace airi
