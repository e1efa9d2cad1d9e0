// What do the core's pieces cost where no binding can be measured apart from them? One JSON object per line:
// hash of 16 tokens, matching and taking a 48-block prompt, dispatching the next tenant of many.
//
// What the figures do not mean: nothing about a whole step; see bench_step.py. bench_core.py builds and runs
// it.

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "base/check.h"
#include "fair/tenant_weights.h"
#include "kv/block_pool.h"
#include "kv/hash_chain.h"
#include "sched/waiting_queue.h"

namespace airi {
namespace {

constexpr int kBlock = 16;
constexpr int kRounds = 21;

// Of this thread: others on the machine do not lengthen it.
double nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e9 * static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec);
}

// Nanoseconds per operation of several rounds; the first round warms up.
class Timings {
 public:
  template <class Work>
  void time(std::int64_t count, Work work) {
    const double began = nanoseconds();
    work();
    const double spent = nanoseconds() - began;
    if (warm_) ns_.push_back(spent / static_cast<double>(count));
    warm_ = true;
  }

  void print(const char* question, const char* variant) {
    std::sort(ns_.begin(), ns_.end());
    const std::size_t n = ns_.size();
    std::printf(
        "{\"question\": \"%s\", \"variant\": \"%s\", \"ns_p20\": %.1f, \"ns_p50\": %.1f, "
        "\"ns_p80\": %.1f, \"n\": %zu}\n",
        question, variant, ns_[n / 5], ns_[n / 2], ns_[4 * n / 5], n);
  }

 private:
  std::vector<double> ns_;
  bool warm_ = false;
};

template <class Work>
void report(const char* question, const char* variant, std::int64_t count, Work work) {
  Timings timings;
  for (int round = 0; round <= kRounds; ++round) timings.time(count, work);
  timings.print(question, variant);
}

std::vector<std::int32_t> some_tokens(int count, std::int32_t salt) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] =
        static_cast<std::int32_t>((i * 2654435761U + static_cast<std::uint32_t>(salt) * 97U) % 50000U);
  }
  return tokens;
}

void bench_hash() {
  const HashChain chain(HashKey{1, 2, 3}, {}, kBlock);
  const auto tokens = some_tokens(512 * kBlock, 0);
  std::vector<Hash128> hashes;
  hashes.reserve(512);
  report("hash of 16 tokens", "chained, 8192 tokens", 512 * 100, [&] {
    for (int i = 0; i < 100; ++i) {
      hashes.clear();
      chain.extend(tokens, {}, hashes);
    }
  });
}

// Chains of 48 published blocks; matching one and taking 48 more, then giving both back.
void bench_match(const char* variant, int chains) {
  constexpr int kBlocks = 48;
  const HashChain chain(HashKey{1, 2, 3}, {}, kBlock);
  BlockPool pool(kBlocks * (chains + 1), kBlock);
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::vector<Hash128>> hashes(static_cast<std::size_t>(chains));
  std::vector<BlockId> table(kBlocks);
  const auto key = [&](std::size_t c, std::size_t i, EntrySerial parent) {
    return BlockKey{parent, hashes[c][i], std::span(prompts[c]).subspan(i * kBlock, kBlock), {}};
  };
  for (std::size_t c = 0; c < hashes.size(); ++c) {
    prompts.push_back(some_tokens(kBlocks * kBlock, static_cast<std::int32_t>(c) + 1));
    chain.extend(prompts[c], {}, hashes[c]);
    AIRI_CHECK(pool.try_take(table));
    EntrySerial parent = kRootSerial;
    for (std::size_t i = 0; i < kBlocks; ++i) parent = pool.publish(table[i], key(c, i, parent));
    pool.release(table);
  }
  std::vector<BlockId> hits(kBlocks);
  const int count = std::max(chains, 200);
  report("match and take, per block", variant, std::int64_t{2} * kBlocks * count, [&] {
    for (int n = 0; n < count; ++n) {
      // A stride that no prefetcher follows.
      const std::size_t c = static_cast<std::size_t>(n) * 7919U % hashes.size();
      EntrySerial parent = kRootSerial;
      for (std::size_t i = 0; i < kBlocks; ++i) {
        const auto hit = pool.find(key(c, i, parent));
        AIRI_CHECK(hit.has_value()) << "chain " << c << " lost block " << i;
        parent = hit->serial;
        hits[i] = hit->block;
      }
      for (const BlockId block : hits) pool.hold(block);
      AIRI_CHECK(pool.try_take(table));
      pool.release(table);
      pool.release(hits);
    }
  });
}

// Half of all requests are dispatched in order, then queue again; both halves are timed apart.
void bench_dispatch(const char* variant, int tenants, int requests,
                    std::optional<WaitingQueue::Locality> locality = std::nullopt) {
  const TenantWeights weights;
  WaitingQueue queue(1, AgingRule(std::nullopt), weights, locality);
  std::vector<std::unique_ptr<Request>> all;
  for (int i = 0; i < 2 * requests; ++i) {
    all.push_back(std::make_unique<Request>());
    all.back()->id = RequestId{i};
    all.back()->tenant = TenantId{i % tenants};
    all.back()->arrival = TimePoint{i};
    all.back()->tokens.resize(1);
    queue.push(all.back().get(), TimePoint{i});
  }
  std::vector<Request*> dispatched;
  std::int64_t service = 0;
  Timings dispatch;
  Timings enqueue;
  for (int round = 0; round <= kRounds; ++round) {
    dispatched.clear();
    dispatch.time(requests, [&] {
      for (int n = 0; n < requests; ++n) {
        dispatched.push_back(queue.head(1, [](Request&) { return 0; }));
        queue.dispatch(dispatched.back(), 100 + service++ % 411, TimePoint{0});
      }
    });
    enqueue.time(requests, [&] {
      for (Request* request : dispatched) {
        queue.end_work(request);
        queue.push(request, TimePoint{0});
      }
    });
  }
  dispatch.print("dispatch of the next tenant's head", variant);
  enqueue.print("end of a request and queueing the next", variant);
}

}  // namespace
}  // namespace airi

int main() {
  airi::bench_hash();
  airi::bench_match("hot: 1 chain", 1);
  airi::bench_match("cold: 4096 chains", 4096);
  airi::bench_dispatch("1 tenant, 1,000 waiting", 1, 500);
  airi::bench_dispatch("10,000 tenants, 20,000 waiting", 10'000, 10'000);
  const airi::WaitingQueue::Locality locality{.quantum_tokens = 4096, .block_size = airi::kBlock};
  airi::bench_dispatch("10,000 tenants, 20,000 waiting, by prefixes within a quantum", 10'000, 10'000,
                       locality);
  return 0;
}
