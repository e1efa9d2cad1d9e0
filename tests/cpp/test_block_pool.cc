// The block pool as an arena: owners stamp what they take and find it untouched when they give it back.

#include <cstdint>
#include <vector>

#include "counting_new.h"
#include "kv/block_pool.h"
#include "random.h"
#include "testing.h"

namespace airi {
namespace {

constexpr std::int32_t kBlocks = 500;
constexpr std::int32_t kBlockSize = 4;

struct Owner {
  std::int32_t stamp = 0;
  std::vector<BlockId> table;
};

TEST(no_block_has_two_owners_over_a_hundred_thousand_operations) {
  testing::Random random(301);
  BlockPool pool(kBlocks, kBlockSize);
  std::vector<std::int32_t> stamps(kBlocks, 0);
  std::vector<Owner> owners;
  std::int32_t held = 0;
  for (std::int32_t step = 1; step <= 100'000; ++step) {
    if (random.below(2) == 0 || owners.empty()) {
      Owner owner{step, std::vector<BlockId>(static_cast<std::size_t>(1 + random.below(30)))};
      const auto count = static_cast<std::int32_t>(owner.table.size());
      EXPECT(pool.try_take(owner.table) == (held + count <= kBlocks));
      if (held + count > kBlocks) continue;
      held += count;
      for (const BlockId block : owner.table) {
        EXPECT(pool.is_writable(block));
        stamps[index(block)] = owner.stamp;
      }
      owners.push_back(owner);
    } else {
      const auto at = static_cast<std::size_t>(random.below(static_cast<std::int32_t>(owners.size())));
      for (const BlockId block : owners[at].table) EXPECT(stamps[index(block)] == owners[at].stamp);
      held -= static_cast<std::int32_t>(owners[at].table.size());
      pool.release(owners[at].table);
      owners[at] = owners.back();
      owners.pop_back();
    }
    EXPECT(pool.num_active() == held);
    if (step % 5000 == 0) pool.check_invariants();
  }
}

TEST(bookkeeping_stays_small_beside_the_tokens_that_a_hit_compares) {
  const std::size_t before = testing::allocated_bytes;
  const BlockPool pool(10'000, 16);
  const std::size_t per_block = (testing::allocated_bytes - before) / 10'000;
  EXPECT(pool.num_free() == 10'000);
  // 64 bytes of tokens, 64 of an entry, two slots of 8, a node and two ids.
  EXPECT(per_block <= 256);
}

TEST(taking_hitting_and_giving_back_allocates_nothing) {
  const HashChain chain(HashKey{}, {}, kBlockSize);
  BlockPool pool(64, kBlockSize);
  std::vector<std::int32_t> tokens(16, 5);
  std::vector<Hash128> hashes;
  chain.extend(tokens, {}, hashes);
  const auto key = [&](std::size_t i, EntrySerial parent) {
    return BlockKey{parent, hashes[i], std::span(tokens).subspan(i * kBlockSize, kBlockSize), {}};
  };
  std::vector<BlockId> table(4);
  const std::size_t before = testing::allocated_bytes;
  EXPECT(pool.try_take(table));
  EntrySerial parent = kRootSerial;
  for (std::size_t i = 0; i < 4; ++i) parent = pool.publish(table[i], key(i, parent));
  pool.release(table);
  parent = kRootSerial;
  for (std::size_t i = 0; i < 4; ++i) {
    const auto hit = pool.find(key(i, parent));
    EXPECT(hit && hit->block == table[i]);
    pool.hold(hit->block);
    parent = hit->serial;
  }
  pool.release(table);
  EXPECT(testing::allocated_bytes == before);
  EXPECT(pool.num_cached() == 4);
}

TEST(entries_survive_deletions_around_them_in_a_crowded_table) {
  // All keys share their home slot: every erase has to move others up.
  testing::Random random(11);
  constexpr std::int32_t kCapacity = 32;
  PrefixIndex table(kCapacity, 1);
  std::vector<std::optional<EntryId>> entries(kCapacity);
  const auto key = [](const std::int32_t& token) {
    return BlockKey{kRootSerial, Hash128{static_cast<std::uint64_t>(token % 3), 0}, std::span(&token, 1), {}};
  };
  for (int step = 0; step < 20'000; ++step) {
    const std::int32_t token = random.below(kCapacity);
    auto& entry = entries[static_cast<std::size_t>(token)];
    EXPECT(table.find(key(token)) == entry);
    if (entry) {
      table.erase(*entry);
      entry.reset();
    } else {
      entry = table.insert(key(token));
    }
    if (step % 100 == 0) table.check_invariants();
  }
}

}  // namespace
}  // namespace airi

RUN_TESTS()
