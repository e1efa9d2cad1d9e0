// The one object that several threads touch: many clients, one owner. Meant to run under TSan as well.

#include <atomic>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "sched/inbox.h"
#include "simulated_runner.h"
#include "testing.h"

namespace airi {
namespace {

TEST(every_request_of_every_thread_arrives_once_and_in_its_threads_order) {
  constexpr int kThreads = 4;
  constexpr int kEach = 2000;
  Inbox inbox(1 << 20);
  std::vector<std::thread> clients;
  clients.reserve(kThreads);
  for (int who = 0; who < kThreads; ++who) {
    clients.emplace_back([&, who] {
      for (int i = 0; i < kEach; ++i) {
        auto request = std::make_unique<Request>();
        request->id = RequestId{who * kEach + i};
        if (inbox.put(request) != Inbox::Put::kAccepted) std::abort();
        inbox.cancel(RequestId{who * kEach + i / 2});
        inbox.set_weight(TenantId{who}, TenantWeight(1.0 + i % 3));
      }
    });
  }
  std::vector<std::int64_t> last(kThreads, -1);
  int seen = 0;
  Inbox::Mail mail;
  while (seen < kThreads * kEach) {
    inbox.take(mail);
    std::vector<RequestId> ended;
    for (const auto& request : mail.requests) {
      const std::int64_t id = raw(request->id);
      auto& previous = last[static_cast<std::size_t>(id / kEach)];
      EXPECT(previous < id);
      previous = id;
      ended.push_back(request->id);
    }
    seen += static_cast<int>(mail.requests.size());
    inbox.settle(0, ended);
    mail.requests.clear();
    mail.cancels.clear();
    mail.weights.clear();
  }
  for (std::thread& client : clients) client.join();
  EXPECT(!inbox.has_live());
}

TEST(every_report_of_a_transfer_arrives_once) {
  constexpr std::int64_t kThreads = 3;
  constexpr std::int64_t kEach = 2000;
  Inbox inbox(1);
  std::vector<std::thread> copiers;
  for (std::int64_t who = 0; who < kThreads; ++who) {
    copiers.emplace_back([&, who] {
      for (std::int64_t i = 0; i < kEach; ++i) {
        const Inbox::TransferReport report{TransferId{who * kEach + i}, i % 2 == 0, i};
        inbox.report(std::span(&report, 1));
      }
    });
  }
  std::set<TransferId> seen;
  Inbox::Mail mail;
  while (std::ssize(seen) < kThreads * kEach) {
    inbox.take(mail);
    for (const auto& [id, ok, micros] : mail.transfers) {
      EXPECT(seen.insert(id).second);
      EXPECT(micros == raw(id) % kEach && ok == (micros % 2 == 0));
    }
    mail.transfers.clear();
  }
  for (std::thread& copier : copiers) copier.join();
}

TEST(what_waits_is_counted_in_the_box_and_in_the_queues) {
  Inbox inbox(3);
  const auto put = [&](std::int64_t id) {
    auto request = std::make_unique<Request>();
    request->id = RequestId{id};
    return inbox.put(request);
  };
  EXPECT(put(1) == Inbox::Put::kAccepted);
  EXPECT(put(1) == Inbox::Put::kDuplicate);
  EXPECT(put(2) == Inbox::Put::kAccepted);
  Inbox::Mail mail;
  inbox.take(mail);
  EXPECT(put(3) == Inbox::Put::kAccepted);
  EXPECT(put(4) == Inbox::Put::kFull);
  inbox.settle(0, {});
  EXPECT(put(4) == Inbox::Put::kAccepted);
}

TEST(clients_submit_cancel_and_read_records_while_the_owner_steps) {
  ModelConfig model;
  model.block_size = 4;
  model.bytes_per_block = kGranuleBytes;
  model.max_model_len = 64;
  model.max_num_seqs = 16;
  model.max_batch_tokens = 64;
  RuntimeConfig config;
  config.arena_bytes = 256 * kGranuleBytes;
  config.slab_bytes = kGranuleBytes;
  config.max_queued = 1 << 20;
  config.decision_records = 64;
  config.kv_event_records = 16;
  testing::SimulatedRunner runner(config, {model});
  std::atomic<int> running{3};
  std::vector<std::thread> clients;
  for (int who = 0; who < 3; ++who) {
    clients.emplace_back([&, who] {
      for (int i = 0; i < 500; ++i) {
        RequestSpec spec;
        spec.id = RequestId{who * 1000 + i};
        spec.tenant = TenantId{who};
        spec.tokens.assign(static_cast<std::size_t>(1 + i % 9), i % 4);
        spec.max_new_tokens = 1 + i % 5;
        if (runner.runtime().submit(std::move(spec)) != Admit::kAccepted) std::abort();
        if (i % 3 == 0) runner.runtime().cancel(RequestId{who * 1000 + i});
        if (i % 50 == 0) runner.runtime().set_tenant(TenantId{who}, 2.0);
      }
      --running;
    });
  }
  std::atomic<bool> stepping{true};
  std::uint64_t known = 0;
  clients.emplace_back([&] {
    std::vector<DecisionRecord> decisions(20);
    std::vector<KvEvent> events(20);
    RingRead decision;
    RingRead event;
    bool more = true;
    while (more) {
      more = stepping;  // what is read after it stopped is all there is
      decision = runner.runtime().decisions().read(decision.cursor, decisions);
      event = runner.runtime().kv_events().read(event.cursor, events);
      for (std::size_t i = 0; i < decision.count; ++i) {
        const std::int64_t id = raw(decisions[i].request);
        if (id < 0 || id >= 3000 || raw(decisions[i].tenant) != id / 1000) std::abort();
      }
      for (std::size_t i = 0; i < event.count; ++i) {
        if (events[i].num_tokens != 4) std::abort();
      }
      known += decision.count + decision.missed + event.count + event.missed;
      more = more || decision.count > 0 || event.count > 0;
    }
  });
  std::set<std::int64_t> ended;
  for (std::int64_t now = 0; running > 0 || runner.runtime().has_work(); ++now) {
    runner.step(TimePoint{now});
    for (const FinishedEvent& event : runner.runtime().drain_events()) {
      EXPECT(ended.insert(raw(event.request_id)).second);
    }
  }
  stepping = false;
  for (std::thread& client : clients) client.join();
  EXPECT(known == runner.runtime().decisions().next() + runner.runtime().kv_events().next());
  EXPECT(ended.size() == 1500);
  runner.runtime().check_invariants();
}

}  // namespace
}  // namespace airi

RUN_TESTS()
