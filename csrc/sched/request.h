#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/indexed_heap.h"
#include "base/time.h"
#include "fair/tenant_ledger.h"
#include "kv/hash_chain.h"
#include "kv/kv_quotas.h"
#include "kv/prefix_index.h"

namespace airi {

enum class FinishReason : std::uint8_t { kStop, kLength, kCancelled, kDeadline, kFailed, kNan, kNeverFits };

// How the runner fared with one row.
enum class RowStatus : std::uint8_t { kOk, kNan, kFailed };

enum class Phase : std::uint8_t {
  kWaiting,  // in the waiting queue: holds no block and no slot
  kLoading,  // holds a slot and blocks, of which a tier fills some; has no row
  kPrefill,  // runs; some of its known tokens have no KV yet, the last one aside
  kDecode,   // runs; all its tokens but the last have KV
  kParked,   // holds no block and no slot, but a token of it is still being computed
  kHeld,     // out of the queue: holds no block and no slot, and waits for one that another computes
};

struct PlannedRow;

// Stands in Request::tokens for a token that is still being computed.
inline constexpr std::int32_t kPendingToken = -1;

// What a caller asks for. Plain data; Runtime::submit validates it.
struct RequestSpec {
  RequestId id{};
  ModelId model{};
  TenantId tenant{};
  std::int32_t band = 0;  // smaller is more urgent
  std::vector<std::int32_t> tokens;
  std::optional<std::int32_t> max_new_tokens;  // nothing: what still fits
  std::int32_t min_new_tokens = 0;
  std::vector<std::int32_t> stop_ids;
  TimePoint arrival{};
  std::optional<TimePoint> deadline;
  std::vector<ExtraKey> extras;
  bool compute_all = false;  // take no prefix hit: every prompt position is computed
};

// A request as the core sees it. What queues touch fills the first cache line, what a row in every step
// touches the first three; with ten thousand tenants waiting, misses are what a dispatch costs.
//
// Lifecycle of num_computed (n), tokens (len) and blocks:
//   [0, n)            KV written, or to be written by steps that are planned; what is committed of it is
//                     published block by block
//   [n, len)          to compute; len - 1 == n while decoding. The last pending_tokens of len are
//                     placeholders: planned steps sample them
//   [len, max_length) to sample
// block_table covers [0, n) between plans and [0, n + chunk) during one.
struct alignas(64) Request {
  RequestId id{};
  TimePoint arrival{};
  std::int32_t band = 0;        // the present one
  TenantIndex ledger_tenant{};  // in the ledger of (model, band); valid while waiting or running
  HeapPlace queue_place = kOutsideHeap;
  HeapPlace aging_place = kOutsideHeap;
  Phase phase = Phase::kWaiting;
  bool first_step = false;  // no step has run in this slot yet
  bool compute_all = false;
  std::uint8_t queued_for = 0;  // the Decision that was recorded last as why it waits
  SlotId slot{};
  std::int32_t num_computed = 0;
  std::int32_t covered = 0;  // block_table.size() * block size
  std::int32_t prompt_length = 0;
  std::int32_t max_length = 0;  // prompt + max new tokens
  std::int32_t min_length = 0;  // prompt + min new tokens: stop ids count from here on
  std::int32_t last_token = 0;  // or kPendingToken

  std::vector<std::int32_t> tokens;  // prompt, then what was sampled
  std::vector<std::int32_t> stop_ids;
  PlannedRow* newest_row = nullptr;  // where rows_in_flight > 0
  std::int32_t rows_in_flight = 0;   // in steps that are not committed
  std::int32_t pending_tokens = 0;   // of those rows' samples

  // Written where the class has targets.
  TimePoint token_due{};          // the next token, where the first is known
  TimePoint best_effort_until{};  // while it stands in a larger band than its class
  bool was_best_effort = false;
  bool was_late = false;        // with some token
  std::int32_t first_band = 0;  // that of the class; immutable after submit

  // Written when blocks are taken or fill up.
  std::int32_t num_published = 0;        // leading blocks of the table that are published
  std::int32_t num_hit_blocks = 0;       // leading blocks taken from the cache at admission
  EntrySerial chain_tail = kRootSerial;  // of the last published block of the table
  std::vector<BlockId> block_table;
  std::vector<Hash128> hashes;  // of full blocks, as far as computed
  std::vector<BlockExtras> extras;

  // Written when it is queued and dispatched.
  TimePoint waiting_since{};
  Micros waited = 0;            // over earlier stays in the queue
  std::int32_t held_steps = 0;  // for which others computed what it shares with them

  // Written while it waits where locality orders the queue.
  std::int32_t num_matched = 0;  // at least as many leading blocks as it would hit now
  bool is_watched = false;       // for the block that would make it hit one more
  HeapPlace match_place = kOutsideHeap;
  std::uint64_t match_version = 0;  // num_matched was exact then; 0: it was never
  Request* watch_prev = nullptr;
  Request* watch_next = nullptr;

  // Written by admission and preemption.
  std::int32_t reserved_blocks = 0;   // promised in all, held ones included; 0: none
  QuotaGroup quota_group = kNoQuota;  // whose blocks it takes, while it runs
  std::int32_t num_preemptions = 0;
  std::optional<std::int32_t> num_cached;  // prompt tokens hit, once dispatched
  std::int64_t bypassed = 0;               // service that passed it while it did not fit
  bool was_loading = false;                // it was admitted to wait for a tier, not to compute at once
  bool loads_nothing = false;              // a load took too long: what the tiers have is computed

  // Immutable after submit, as are id, arrival, the lengths, stop_ids and extras above.
  std::uint64_t serial = 0;  // unlike the id, never used twice
  ModelId model{};
  TenantId tenant{};
  std::optional<TimePoint> deadline;
  HeapPlace deadline_place = kOutsideHeap;

  [[nodiscard]] std::int32_t length() const noexcept { return static_cast<std::int32_t>(tokens.size()); }
  [[nodiscard]] std::int32_t generated() const noexcept { return length() - pending_tokens - prompt_length; }
  // True iff steps that are planned sample all it may ever be given.
  [[nodiscard]] bool is_planned_out() const noexcept { return length() >= max_length; }
  [[nodiscard]] bool awaits_token() const noexcept { return pending_tokens > 0; }
  [[nodiscard]] bool dispatched_before() const noexcept { return num_cached.has_value(); }
  [[nodiscard]] bool is_stop(std::int32_t token) const noexcept {
    return std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
  }
  // The extras of one block; usually none.
  [[nodiscard]] std::span<const std::uint8_t> extras_of(std::int32_t block) const noexcept {
    for (const BlockExtras& extra : extras) {
      if (extra.block == block) return extra.bytes;
    }
    return {};
  }
};

static_assert(offsetof(Request, tokens) == 64, "what orders and plans a request fits one cache line");
static_assert(offsetof(Request, token_due) == 128, "what a row touches beside it fits two more");

// Order inside a tenant: arrival, then id.
struct ByArrival {
  bool operator()(const Request* a, const Request* b) const noexcept {
    return a->arrival != b->arrival ? a->arrival < b->arrival : a->id < b->id;
  }
};

}  // namespace airi
