#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/time.h"
#include "fair/tenant_ledger.h"
#include "kv/memory_op.h"
#include "sched/decisions.h"
#include "sched/request.h"

namespace airi {

// What any thread hands to the owner thread: new requests, cancellations, tenant weights, ends of transfers.
// The only object of the core that more than one thread touches.
//
// Thread safety: every method may be called from any thread.
// Invariant: a request id is live from put() until settle() is told that it ended; live ids are unique.
class Inbox {
 public:
  enum class Put : std::uint8_t { kAccepted, kFull, kDuplicate };

  // Names the very request: its id may have been given to another since.
  struct Cancel {
    RequestId id{};
    std::uint64_t serial = 0;
  };

  // The runner is done with a memory operation.
  struct TransferReport {
    TransferId id{};
    bool ok = false;
    Micros micros = 0;  // what it took by itself
  };

  // How many blocks of a model a tenant keeps.
  struct Quota {
    ModelId model{};
    TenantId tenant{};
    std::int32_t blocks = 0;
  };

  // What arrived since the last take(), in order of arrival per kind.
  struct Mail {
    std::vector<std::unique_ptr<Request>> requests;
    std::vector<Cancel> cancels;
    std::vector<std::pair<TenantId, TenantWeight>> weights;
    std::vector<DecisionRecord> refusals;
    std::vector<TransferReport> transfers;
    std::vector<Quota> quotas;
  };

  // At most `max_queued` requests wait, here or in the queues.
  explicit Inbox(std::int64_t max_queued) : max_queued_(max_queued) {}

  // Takes `request`, and gives it its serial, only where it answers kAccepted.
  Put put(std::unique_ptr<Request>& request);
  // Returns false for an id that is not live.
  bool cancel(RequestId id);
  // Notes that a request was refused; what comes beyond kMaxRefusals before the next take() is not noted.
  void note_refusal(const DecisionRecord& refusal);
  void set_weight(TenantId tenant, TenantWeight weight);
  void report(std::span<const TransferReport> reports);

  // Throws InvalidArgument for a negative number, or a tenant too many of a model.
  void set_quota(const Quota& quota);
  // Blocks of the model that quotas keep for other tenants than this one.
  [[nodiscard]] std::int64_t kept_for_others(ModelId model, TenantId tenant) const;

  // Swaps what arrived into `mail`, whose vectors must be empty; their capacity is reused.
  void take(Mail& mail);
  // The owner reports how many requests wait in its queues, and which ids ended.
  void settle(std::int64_t waiting, std::span<const RequestId> ended);

  [[nodiscard]] bool has_live() const;

 private:
  static constexpr std::size_t kMaxRefusals = 256;

  const std::int64_t max_queued_;
  mutable Mutex mu_;
  Mail mail_ AIRI_GUARDED_BY(mu_);
  std::unordered_map<RequestId, std::uint64_t> live_ AIRI_GUARDED_BY(mu_);  // to serials
  std::uint64_t last_serial_ AIRI_GUARDED_BY(mu_) = 0;
  std::vector<Quota> quotas_ AIRI_GUARDED_BY(mu_);  // the latest of each model and tenant
  std::int64_t waiting_ AIRI_GUARDED_BY(mu_) = 0;
};

}  // namespace airi
