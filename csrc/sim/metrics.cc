#include "sim/metrics.h"

#include <algorithm>
#include <utility>

#include "sim/add_members.h"

namespace airi {

TenantTotals& TenantTotals::operator+=(const TenantTotals& other) {
  using T = TenantTotals;
  add_members(*this, other, &T::requests, &T::refused, &T::finished, &T::prompt_tokens, &T::cached_tokens,
              &T::generated_tokens, &T::attained, &T::ttft);
  return *this;
}

void Metrics::merge(const Metrics& other) {
  using M = Metrics;
  add_members(*this, other, &M::accepted, &M::finished, &M::failed, &M::prompt_tokens, &M::cached_tokens,
              &M::generated_tokens, &M::within_ttft, &M::within_itl, &M::within_both, &M::within_worst_itl,
              &M::ttft, &M::itl, &M::e2e);
  for (std::size_t i = 0; i < kRefusals; ++i) refused[i] += other.refused[i];
  for (const auto& [tenant, totals] : other.tenants) tenants[tenant] += totals;
  timeline.merge(other.timeline);
}

void Metrics::refuse(TenantId tenant, Refusal why, TimePoint now) {
  ++refused[raw(why)];
  TenantTotals& totals = tenants[tenant];
  ++totals.requests;
  ++totals.refused;
  ++timeline.at(now).refused;
}

TenantTotals& Metrics::accept(TenantId tenant, TimePoint now) {
  ++accepted;
  ++timeline.at(now).accepted;
  TenantTotals& totals = tenants[tenant];
  ++totals.requests;
  return totals;
}

void Metrics::flush() {
  if (gaps_ == 0) return;
  itl.add(gap_, gaps_);
  timeline.at(gap_at_).itl.add(gap_, gaps_);
  gaps_ = 0;
}

void Metrics::add_gap(Micros gap, TimePoint now) {
  if (gap != gap_ || now != gap_at_) {
    flush();
    gap_ = gap;
    gap_at_ = now;
  }
  ++gaps_;
}

void Metrics::emit(LiveRequest& live, TimePoint now) {
  if (++live.generated == 1) {
    live.first = now;
    const Micros wait = now - live.arrival;
    ttft.add(wait);
    live.totals->ttft.add(wait);
    timeline.at(now).ttft.add(wait);
  } else {
    const Micros gap = now - live.last;
    live.worst_gap = std::max(live.worst_gap, gap);
    add_gap(gap, now);
  }
  live.last = now;
}

void Metrics::judge(const LiveRequest& live) {
  const Micros gaps = std::max(live.generated - 1, 1);
  const bool first = !targets_.ttft || live.first - live.arrival <= *targets_.ttft;
  const bool others = !targets_.itl || live.last - live.first <= *targets_.itl * gaps;
  const bool worst = !targets_.itl || live.worst_gap <= *targets_.itl;
  within_ttft += first ? 1 : 0;
  within_itl += others ? 1 : 0;
  within_both += first && others ? 1 : 0;
  within_worst_itl += first && worst ? 1 : 0;
  live.totals->attained += first && others ? 1 : 0;
}

void Metrics::finish(const LiveRequest& live, FinishReason reason, std::int32_t replica, std::int32_t prompt,
                     std::int32_t cached) {
  if (reason != FinishReason::kLength) {
    ++failed;
    return;
  }
  ++finished;
  prompt_tokens += prompt;
  cached_tokens += cached;
  generated_tokens += live.generated;
  e2e.add(live.last - live.arrival);
  TenantTotals& totals = *live.totals;
  ++totals.finished;
  totals.prompt_tokens += prompt;
  totals.cached_tokens += cached;
  totals.generated_tokens += live.generated;
  judge(live);
  ++timeline.at(live.last).finished;
  if (!keeps_rows_) return;
  rows_.push_back({.request_id = raw(live.id),
                   .tenant = raw(live.tenant),
                   .arrival_us = static_cast<std::int64_t>(live.arrival),
                   .first_token_us = static_cast<std::int64_t>(live.first),
                   .end_us = static_cast<std::int64_t>(live.last),
                   .worst_itl_us = live.worst_gap,
                   .replica = replica,
                   .prompt_tokens = prompt,
                   .cached_tokens = cached,
                   .generated_tokens = live.generated});
}

std::vector<RequestRow> Metrics::take_rows() { return std::exchange(rows_, {}); }

}  // namespace airi
