#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/time.h"
#include "sched/model_scheduler.h"
#include "sched/request.h"
#include "sim/log_histogram.h"
#include "sim/timeline.h"

namespace airi {

// Why a request never ran.
enum class Refusal : std::uint8_t { kQueueFull, kTooLong, kNeverFits, kEmpty };
inline constexpr std::size_t kRefusals = 4;

// What requests are promised; nothing where a target was not set.
struct SloTargets {
  std::optional<Micros> ttft;
  std::optional<Micros> itl;
};

// One request, exactly.
struct RequestRow {
  std::int64_t request_id = 0;
  std::int64_t tenant = 0;
  std::int64_t arrival_us = 0;
  std::int64_t first_token_us = 0;  // moments, as arrival_us
  std::int64_t end_us = 0;
  std::int64_t worst_itl_us = 0;
  std::int32_t replica = 0;
  std::int32_t prompt_tokens = 0;
  std::int32_t cached_tokens = 0;
  std::int32_t generated_tokens = 0;
};

struct TenantTotals {
  std::int64_t requests = 0, refused = 0, finished = 0;
  std::int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;  // of finished requests
  std::int64_t attained = 0;                                                // finished within all targets
  LogHistogram ttft;

  TenantTotals& operator+=(const TenantTotals& other);
};

// A request that a replica has accepted and not ended, as far as figures need it.
struct LiveRequest {
  RequestId id{};
  TenantId tenant{};
  TenantTotals* totals = nullptr;
  TimePoint arrival{};
  TimePoint first{};  // token; valid once generated > 0
  TimePoint last{};
  Micros worst_gap = 0;
  std::int32_t generated = 0;
  std::int32_t to_generate = 0;  // in all
};

// What is measured over a simulation, in memory that depends on the number of tenants and, where rows are
// kept, on how often they are taken; never on the number of requests.
//
// Thread safety: none.
class Metrics {
 public:
  Metrics(SloTargets targets, bool keeps_rows) : targets_(targets), keeps_rows_(keeps_rows) {}
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void refuse(TenantId tenant, Refusal why, TimePoint now);
  // Counts a request that was accepted. The totals stay where they are.
  [[nodiscard]] TenantTotals& accept(TenantId tenant, TimePoint now);
  // A token of `live` came out.
  void emit(LiveRequest& live, TimePoint now);
  // Its prompt has `prompt` tokens, of which `cached` were not computed.
  void finish(const LiveRequest& live, FinishReason reason, std::int32_t replica, std::int32_t prompt,
              std::int32_t cached);
  // Adds the gaps that emit() has put aside. Call before reading.
  void flush();
  // Adds what another one holds, but for its rows. Gives the same in any order. REQUIRES: both were flushed.
  void merge(const Metrics& other);

  // The rows since the last call.
  [[nodiscard]] std::vector<RequestRow> take_rows();

  // Only to be read from outside, after flush().
  std::int64_t accepted = 0, finished = 0, failed = 0;  // failed: ended for another reason than its length
  std::array<std::int64_t, kRefusals> refused{};
  std::int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;  // of finished requests
  std::int64_t within_ttft = 0, within_itl = 0, within_both = 0;            // finished requests; mean gap
  std::int64_t within_worst_itl = 0;                                        // TTFT and every single gap
  LogHistogram ttft, itl, e2e;
  std::map<TenantId, TenantTotals> tenants;
  Timeline timeline;

 private:
  void add_gap(Micros gap, TimePoint now);
  void judge(const LiveRequest& live);

  // Immutable after construction.
  SloTargets targets_;
  bool keeps_rows_;

  // Equal gaps in a row, of one step usually.
  Micros gap_ = 0;
  TimePoint gap_at_{};
  std::int64_t gaps_ = 0;

  std::vector<RequestRow> rows_;
};

}  // namespace airi
