#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "base/check.h"

namespace airi {

// The largest capacity of a ring.
inline constexpr std::int64_t kMaxRingRecords = std::int64_t{1} << 24;

// What one read of a BroadcastRing brought.
struct RingRead {
  std::uint64_t cursor = 0;  // where to read on
  std::uint64_t missed = 0;  // records overwritten before they could be read, all of them before `count`
  std::size_t count = 0;     // records read
};

// The last records of one writer, for any number of readers that each keep a cursor: the sequence
// number of the record to read next, 0 for the first ever. The writer never waits, never allocates
// and does not know its readers: the oldest record is overwritten, and a reader that comes too late
// learns how many it missed.
//
// A record lies in its slot as atomic words; no lock, no fence, no stamp per slot. The writer of record
// s stores its words and then s + 1 as the head, each with release; a reader loads head, words, and
// head again. A word of record s + slots in the place of s was stored after the head became s + slots,
// so a reader that saw it also sees that head afterwards, and gives the record up.
//
// Thread safety: push() from one thread; everything else from any thread.
// Invariant: the last `capacity` records can be read.
template <class Record>
class BroadcastRing {
  static_assert(std::is_trivially_copyable_v<Record> && std::has_unique_object_representations_v<Record>,
                "a record is copied word by word and has no padding");
  static_assert(sizeof(Record) % sizeof(std::uint64_t) == 0, "a record is whole words");

 public:
  // Keeps at least the last `capacity` records; with 0, nothing is kept and pushing does nothing.
  // Throws InvalidArgument unless capacity lies in [0, 2^24].
  explicit BroadcastRing(std::int64_t capacity) : num_slots_(slots_for(capacity)) {
    if (num_slots_ > 0) words_ = std::make_unique<std::atomic<std::uint64_t>[]>(num_slots_ * kWords);
  }
  BroadcastRing(const BroadcastRing&) = delete;
  BroadcastRing& operator=(const BroadcastRing&) = delete;

  [[nodiscard]] bool enabled() const noexcept { return num_slots_ > 0; }
  // How many records can be read: the capacity asked for, or up to twice as many.
  [[nodiscard]] std::uint64_t capacity() const noexcept { return num_slots_ > 0 ? num_slots_ - 1 : 0; }

  // The sequence number of the next record: a reader that starts here sees only what is to come.
  [[nodiscard]] std::uint64_t next() const noexcept { return head_.load(std::memory_order_acquire); }

  // Appends a record. The writer's thread only.
  void push(const Record& record) noexcept {
    if (num_slots_ == 0) return;
    const std::uint64_t seq = head_.load(std::memory_order_relaxed);
    std::atomic<std::uint64_t>* slot = slot_of(seq);
    const auto words = std::bit_cast<Words>(record);
    for (std::size_t i = 0; i < kWords; ++i) slot[i].store(words[i], std::memory_order_release);
    head_.store(seq + 1, std::memory_order_release);
  }

  // Copies records from `cursor` on, oldest first, until `out` is full or there are no more. Throws
  // InvalidArgument for a cursor beyond next(), which no read of this ring has given.
  RingRead read(std::uint64_t cursor, std::span<Record> out) const {
    const std::uint64_t head = next();
    if (cursor > head) {
      throw InvalidArgument("cursor must be at most " + std::to_string(head) + ", the next record, got " +
                            std::to_string(cursor));
    }
    const std::uint64_t first = std::max(cursor, oldest(head));
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), head - first));
    for (std::size_t i = 0; i < count; ++i) out[i] = load(first + i);
    // Records overwritten meanwhile stand first.
    const std::uint64_t kept = std::clamp(oldest(next()), first, first + count);
    const auto torn = static_cast<std::size_t>(kept - first);
    if (torn > 0)
      std::copy(out.begin() + static_cast<std::ptrdiff_t>(torn),
                out.begin() + static_cast<std::ptrdiff_t>(count), out.begin());
    return {.cursor = first + count, .missed = kept - cursor, .count = count - torn};
  }

 private:
  static constexpr std::size_t kWords = sizeof(Record) / sizeof(std::uint64_t);
  using Words = std::array<std::uint64_t, kWords>;

  static std::size_t slots_for(std::int64_t capacity) {
    if (capacity < 0 || capacity > kMaxRingRecords) {
      throw InvalidArgument("the capacity of a ring must lie in [0, 2^24], got " + std::to_string(capacity));
    }
    // One more: the slot that is being written holds nothing.
    return capacity == 0 ? 0 : std::bit_ceil(static_cast<std::size_t>(capacity) + 1);
  }

  [[nodiscard]] std::atomic<std::uint64_t>* slot_of(std::uint64_t seq) const noexcept {
    return words_.get() + (static_cast<std::size_t>(seq) & (num_slots_ - 1)) * kWords;
  }
  [[nodiscard]] Record load(std::uint64_t seq) const noexcept {
    Words words;
    const std::atomic<std::uint64_t>* slot = slot_of(seq);
    for (std::size_t i = 0; i < kWords; ++i) words[i] = slot[i].load(std::memory_order_acquire);
    return std::bit_cast<Record>(words);
  }
  // The first record that nobody overwrites while `head` is the head.
  [[nodiscard]] std::uint64_t oldest(std::uint64_t head) const noexcept {
    return head < num_slots_ || num_slots_ == 0 ? 0 : head - num_slots_ + 1;
  }

  // Immutable after construction.
  std::size_t num_slots_;  // a power of two, or 0
  std::unique_ptr<std::atomic<std::uint64_t>[]> words_;

  std::atomic<std::uint64_t> head_ = 0;
};

}  // namespace airi
