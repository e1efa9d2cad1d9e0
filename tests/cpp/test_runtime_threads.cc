// All that threads may do with a runtime while its owner steps: meant to run under TSan as well.

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "random.h"
#include "simulated_runner.h"
#include "testing.h"

namespace airi {
namespace {

constexpr int kClients = 3;
constexpr int kEach = 400;
constexpr std::int32_t kTooLong = 200;

ModelConfig model_of(std::optional<std::int32_t> num_slabs) {
  ModelConfig model;
  model.block_size = 4;
  model.bytes_per_block = kGranuleBytes;
  model.max_model_len = 64;
  model.max_num_seqs = 6;
  model.max_batch_tokens = 32;
  model.num_slabs = num_slabs;
  if (!num_slabs) model.min_slabs = 20;
  return model;
}

RuntimeConfig config_of() {
  RuntimeConfig config;
  config.arena_bytes = 60 * kGranuleBytes;
  config.slab_bytes = kGranuleBytes;
  config.max_queued = 1 << 20;
  config.decision_records = 64;
  config.kv_event_records = 16;
  config.slab_hysteresis_us = 0;
  config.tiers = {.host_bytes = 200 * kGranuleBytes,
                  .disk_bytes = 200 * kGranuleBytes,
                  .store_on_reuse = 1,
                  .load_timeout_us = 5000,
                  .host_bytes_per_us = 1e6,
                  .disk_bytes_per_us = 1e6};
  return config;
}

// Transfers that have begun, on their way from the owner's thread to those that copy.
class Begun {
 public:
  void add(std::span<const std::int64_t> op) {
    if (static_cast<MemoryOpKind>(op[0]) == MemoryOpKind::kZero) return;
    const std::lock_guard lock(mu_);
    ids_.push_back(TransferId{op[1]});
  }
  std::optional<TransferId> take() {
    const std::lock_guard lock(mu_);
    if (ids_.empty()) return std::nullopt;
    const TransferId id = ids_.front();
    ids_.pop_front();
    return id;
  }

 private:
  std::mutex mu_;
  std::deque<TransferId> ids_;
};

// Submits prompts of few families, some of which nobody can serve, cancels, weighs and sets quotas.
void be_client(Runtime& runtime, int who, std::atomic<int>& accepted) {
  testing::Random random(static_cast<std::uint64_t>(who));
  for (int i = 0; i < kEach; ++i) {
    RequestSpec spec;
    spec.id = RequestId{who * kEach + i};
    spec.model = ModelId{random.below(2)};
    spec.tenant = TenantId{who};
    spec.tokens.assign(static_cast<std::size_t>(i % 40 == 0 ? kTooLong : 24 + random.below(16)), i % 7);
    spec.max_new_tokens = 1 + random.below(5);
    if (runtime.submit(std::move(spec)) == Admit::kAccepted) ++accepted;
    if (i % 5 == 0) runtime.cancel(RequestId{who * kEach + random.below(kEach)});
    if (i % 20 == 0) runtime.set_tenant(TenantId{who}, 1.0 + random.below(3));
    if (i % 10 == 0) runtime.set_kv_quota(TenantId{who}, ModelId{random.below(2)}, random.below(3));
    if (i % 4 == 0) std::this_thread::yield();
  }
}

// Ends what has begun, well or not, in batches and some of it twice.
void copy(Runtime& runtime, Begun& begun, const std::atomic<bool>& stepping, std::uint64_t seed) {
  testing::Random random(seed);
  std::vector<Inbox::TransferReport> reports;
  while (stepping) {
    while (const auto id = begun.take()) {
      reports.push_back({.id = *id, .ok = random.below(8) != 0, .micros = 1 + random.below(50)});
    }
    runtime.complete_transfers(reports);
    if (random.below(2) == 0) reports.clear();
    std::this_thread::yield();
  }
}

template <class Record>
std::uint64_t read_all(const BroadcastRing<Record>& ring, const std::atomic<bool>& stepping) {
  std::vector<Record> records(20);
  RingRead read;
  std::uint64_t known = 0;
  for (bool more = true; more;) {
    more = stepping;  // what is read after it stopped is all there is
    read = ring.read(read.cursor, records);
    known += read.count + read.missed;
    more = more || read.count > 0;
  }
  return known;
}

void learn(StepTimeModel& model) {
  for (int i = 1; i <= 40; ++i) {
    model.observe({.tokens = i, .seqs = i, .decode_context = 10 * i}, 100 + i);
    model.observe({.tokens = 2 * i, .seqs = 1, .prefill_pairs = 2.0 * i * i}, 100 + 40 * i);
  }
}

TEST(clients_copiers_and_readers_never_meet_the_owner_in_the_middle_of_anything) {
  testing::SimulatedRunner runner(config_of(), {model_of(20), model_of(std::nullopt)});
  Runtime& runtime = runner.runtime();
  for (const std::int32_t id : {0, 1}) learn(runtime.step_time(ModelId{id}));
  Begun begun;
  std::atomic<int> accepted = 0;
  std::atomic<int> submitting = kClients;
  std::atomic<bool> stepping = true;
  std::atomic<std::uint64_t> known = 0;
  std::vector<std::thread> threads;
  for (int who = 0; who < kClients; ++who) {
    threads.emplace_back([&, who] {
      be_client(runtime, who, accepted);
      --submitting;
    });
  }
  for (const std::uint64_t seed : {1, 2}) {
    threads.emplace_back([&, seed] { copy(runtime, begun, stepping, seed); });
  }
  threads.emplace_back([&] { known += read_all(runtime.decisions(), stepping); });
  threads.emplace_back([&] { known += read_all(runtime.kv_events(), stepping); });
  std::set<RequestId> ended;
  for (TimePoint now{}; submitting > 0 || runtime.has_work(); now = now + 100) {
    const auto planned = runner.step(now, 100, 7, [](std::size_t) { return false; });
    for (std::int32_t i = 0; planned && i < planned->num_ops; ++i) {
      begun.add(std::span(runner.arrays(*planned).ops).subspan(static_cast<std::size_t>(5 * i), 5));
    }
    for (const FinishedEvent& event : runtime.drain_events()) {
      EXPECT(ended.insert(event.request_id).second);
    }
  }
  stepping = false;
  for (std::thread& thread : threads) thread.join();
  EXPECT(known == runtime.decisions().next() + runtime.kv_events().next());
  EXPECT(std::ssize(ended) == accepted && accepted > kClients * kEach / 2);
  std::int64_t loads = 0;
  for (const ModelStats& stats : runtime.stats()) loads += stats.tiers.loads;
  EXPECT(loads > 0);
  runtime.check_invariants();
}

}  // namespace
}  // namespace airi

RUN_TESTS()
