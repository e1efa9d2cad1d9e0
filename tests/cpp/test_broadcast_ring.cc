// One writer that never waits, readers that learn what they missed. Meant to run under TSan as well.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#include "base/broadcast_ring.h"
#include "random.h"
#include "testing.h"

namespace airi {
namespace {

// Every word follows from the first, so that a record put together of two is seen.
struct Stamped {
  std::uint64_t seq = 0;
  std::uint64_t words[5] = {};

  static Stamped of(std::uint64_t seq) {
    Stamped record{.seq = seq, .words = {}};
    testing::Random random(seq);
    for (std::uint64_t& word : record.words) word = random.next();
    return record;
  }
  friend bool operator==(const Stamped&, const Stamped&) = default;
};

using Ring = BroadcastRing<Stamped>;

TEST(a_ring_answers_like_a_list_of_its_last_records) {
  testing::Random random(7);
  for (int round = 0; round < 50; ++round) {
    const std::int64_t capacity = 1 + random.below(20);
    Ring ring(capacity);
    std::deque<std::uint64_t> all;
    std::vector<std::uint64_t> cursors(3, 0);
    for (int i = 0; i < 300; ++i) {
      if (random.below(4) > 0) {
        ring.push(Stamped::of(all.size()));
        all.push_back(all.size());
        continue;
      }
      std::uint64_t& cursor = cursors[static_cast<std::size_t>(random.below(3))];
      std::vector<Stamped> out(static_cast<std::size_t>(random.below(30)));
      const RingRead read = ring.read(cursor, out);
      const std::uint64_t behind = all.size() - cursor;
      EXPECT(behind <= static_cast<std::uint64_t>(capacity) ? read.missed == 0 : read.missed < behind);
      EXPECT(read.cursor == cursor + read.missed + read.count);
      EXPECT(read.count == out.size() || read.cursor == all.size());
      for (std::size_t k = 0; k < read.count; ++k) {
        EXPECT(out[k] == Stamped::of(cursor + read.missed + k));
      }
      cursor = read.cursor;
    }
  }
}

TEST(a_reader_is_told_exactly_how_many_records_it_missed) {
  Ring ring(3);  // four slots, of which one may be in writing
  for (std::uint64_t seq = 0; seq < 10; ++seq) ring.push(Stamped::of(seq));
  std::vector<Stamped> out(10);
  const RingRead read = ring.read(2, out);
  EXPECT(read.missed == 5 && read.count == 3 && read.cursor == 10);
  EXPECT(out[0] == Stamped::of(7) && out[2] == Stamped::of(9));
  EXPECT(ring.read(10, out).count == 0);
  EXPECT_THROW(ring.read(11, out), InvalidArgument);
}

TEST(a_ring_of_no_records_takes_everything_and_keeps_nothing) {
  Ring ring(0);
  ring.push(Stamped::of(0));
  std::vector<Stamped> out(1);
  EXPECT(!ring.enabled() && ring.next() == 0 && ring.read(0, out).count == 0);
  EXPECT_THROW(Ring(-1), InvalidArgument);
  EXPECT_THROW(Ring((1 << 24) + 1), InvalidArgument);
}

// The smaller the ring, the more often a record is overwritten while it is read.
void overrun(std::int64_t capacity) {
  constexpr std::uint64_t kEach = 400;
  constexpr std::size_t kReaders = 3;
  Ring ring(capacity);
  std::atomic<bool> wrong{false};
  std::atomic<std::size_t> reading{kReaders};
  std::vector<std::thread> readers;
  for (std::size_t who = 0; who < kReaders; ++who) {
    readers.emplace_back([&, who] {
      std::vector<Stamped> out(1 + 7 * who);
      std::uint64_t cursor = 0;
      for (std::uint64_t seen = 0; seen < kEach;) {
        const RingRead read = ring.read(cursor, out);
        for (std::size_t i = 0; i < read.count; ++i) {
          if (out[i] != Stamped::of(cursor + read.missed + i)) wrong = true;
        }
        if (read.cursor != cursor + read.missed + read.count) wrong = true;
        seen += read.count;
        cursor = read.cursor;
      }
      --reading;
    });
  }
  for (std::uint64_t seq = 0; reading > 0; ++seq) {
    ring.push(Stamped::of(seq));
    if (seq % 64 == 0) std::this_thread::yield();
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT(!wrong);
}

TEST(readers_that_are_overrun_see_whole_records_in_order_or_know_what_they_missed) {
  overrun(3);
  overrun(40);
}

}  // namespace
}  // namespace airi

RUN_TESTS()
