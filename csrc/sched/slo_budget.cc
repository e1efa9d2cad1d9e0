#include "sched/slo_budget.h"

#include <algorithm>

namespace airi {
namespace {

constexpr std::int32_t kGainWindow = 1024;  // tokens
constexpr double kGainCut = 0.9;
constexpr double kGainStep = 0.01;
constexpr double kLeastGain = 0.1;
constexpr double kSigmas = 2;     // that a deadline keeps clear of
constexpr double kUsable = 0.98;  // of the time to a deadline: a step filled to the end comes late
constexpr std::int32_t kLeastChunkPart = 32;  // of a full step

StepWork with_decodes(std::span<const DecodeLoad> bands) noexcept {
  StepWork work;
  for (const DecodeLoad& band : bands) {
    work.tokens += band.count;
    work.seqs += band.count;
    work.decode_context += band.context;
  }
  return work;
}

// Microseconds until the earliest token is due, less what estimates are off by.
double slack(const StepTimeModel& model, TimePoint start, std::span<const DecodeLoad> bands) noexcept {
  std::optional<TimePoint> due;
  for (const DecodeLoad& band : bands) {
    if (band.due && (!due || *band.due < *due)) due = band.due;
  }
  if (!due) return std::numeric_limits<double>::infinity();
  return kUsable * static_cast<double>(*due - start) - kSigmas * model.sigma();
}

double estimate_alone(const StepTimeModel& model, const PrefillLoad& prefill) noexcept {
  return model.estimate(with_prefills({}, {&prefill, 1}, prefill.remaining));
}

// True iff the first token is still to be had in time, but not for sure if the prompt waits for one more step
// of `step` microseconds and then as long again as it takes.
bool is_pressing(const StepTimeModel& model, TimePoint start, double step,
                 const PrefillLoad& prefill) noexcept {
  if (!prefill.due) return false;
  const auto left = static_cast<double>(*prefill.due - start);
  const double alone = estimate_alone(model, prefill);
  return left >= alone && left <= 2 * alone + step + kSigmas * model.sigma();
}

}  // namespace

StepWork with_prefills(StepWork work, std::span<const PrefillLoad> prefills, std::int64_t tokens) noexcept {
  for (const PrefillLoad& prefill : prefills) {
    if (tokens <= 0) return work;
    const std::int64_t part = std::min<std::int64_t>(tokens, prefill.remaining);
    work.add_chunk(prefill.context, part);
    tokens -= part;
  }
  work.tokens += tokens;
  if (tokens > 0) ++work.seqs;
  return work;
}

std::int32_t largest_prefill(const StepTimeModel& model, const StepWork& decodes,
                             std::span<const PrefillLoad> prefills, double micros, std::int32_t tile,
                             std::int32_t most) noexcept {
  const auto fits = [&](std::int64_t tokens) {
    return model.estimate(with_prefills(decodes, prefills, tokens)) <= micros;
  };
  if (most <= 0 || fits(most)) return std::max(most, 0);
  std::int32_t low = 0;  // tiles that fit, or none
  std::int32_t high = (most - 1) / tile + 1;
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    (fits(std::int64_t{middle} * tile) ? low : high) = middle;
  }
  return low * tile;
}

std::optional<std::int32_t> largest_context(const StepTimeModel& model, double micros,
                                            std::int32_t most) noexcept {
  const auto fits = [&](std::int32_t context) {
    return model.estimate({.tokens = 1, .seqs = 1, .decode_context = context}) <= micros;
  };
  if (fits(most)) return most;
  if (!fits(0)) return std::nullopt;
  std::int32_t low = 0;
  std::int32_t high = most;
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

void BudgetGain::note(bool is_late) noexcept {
  late_ += is_late ? 1 : 0;
  if (++tokens_ < kGainWindow) return;
  value_ =
      100 * late_ > tokens_ ? std::max(kLeastGain, value_ * kGainCut) : std::min(1.0, value_ + kGainStep);
  tokens_ = late_ = 0;
}

SloBudget::SloBudget(const Limits& limits) noexcept
    : limits_(limits),
      least_chunk_(std::max(limits.max_tokens / kLeastChunkPart / limits.tile, 1) * limits.tile) {}

bool SloBudget::is_feasible(const StepTimeModel& model, TimePoint start,
                            const PrefillLoad& prefill) noexcept {
  return !prefill.due || static_cast<double>(*prefill.due - start) >= estimate_alone(model, prefill);
}

SloBudget::Grant SloBudget::within(const StepTimeModel& model, TimePoint start,
                                   std::span<const DecodeLoad> bands,
                                   std::span<const PrefillLoad> prefills) const noexcept {
  const StepWork decodes = with_decodes(bands);
  const auto most = static_cast<std::int32_t>(std::max<std::int64_t>(limits_.max_tokens - decodes.tokens, 0));
  // A step takes what its decodes take: what fits beside them in that time costs no deadline anything.
  const double micros = std::max(slack(model, start, bands), model.estimate(decodes));
  std::int32_t tokens = largest_prefill(model, decodes, prefills, micros, limits_.tile, most);
  if (tokens < most && tokens > 0) {
    const auto tiles = static_cast<std::int32_t>(tokens * gain_.value() / limits_.tile);
    tokens = std::max(tiles, 1) * limits_.tile;
  }
  return {.prefill_tokens = tokens, .micros = micros, .resting_from = {}};
}

std::optional<std::int32_t> SloBudget::pressing_band(
    const StepTimeModel& model, TimePoint start, double step, std::span<const PrefillLoad> prefills,
    const std::optional<PrefillLoad>& waiting) const noexcept {
  for (const PrefillLoad& prefill : prefills) {
    if (is_pressing(model, start, step, prefill)) return prefill.band;
  }
  if (waiting && is_pressing(model, start, step, *waiting)) return waiting->band;
  if (starved_ < kPatience) return std::nullopt;
  return prefills.empty() ? waiting->band : prefills.front().band;
}

SloBudget::Grant SloBudget::relieve(const StepTimeModel& model, TimePoint start,
                                    std::span<const DecodeLoad> bands, std::span<const PrefillLoad> prefills,
                                    std::int32_t pressing_band, const Grant& tight) noexcept {
  const auto decodes = [](const DecodeLoad& band) { return band.count > 0; };
  const auto first = std::ranges::find_if(bands, decodes) - bands.begin();
  for (auto b = std::ssize(bands) - 1; !has_rested_ && b > first && b >= pressing_band; --b) {
    if (!decodes(bands[static_cast<std::size_t>(b)])) continue;
    Grant grant = within(model, start, bands.first(static_cast<std::size_t>(b)), prefills);
    if (grant.prefill_tokens < least_chunk_) continue;
    grant.resting_from = static_cast<std::int32_t>(b);
    return grant;
  }
  const StepWork all = with_decodes(bands);
  Grant forced = tight;
  forced.prefill_tokens =
      static_cast<std::int32_t>(std::min<std::int64_t>(least_chunk_, limits_.max_tokens - all.tokens));
  const double micros = model.estimate(with_prefills(all, prefills, forced.prefill_tokens));
  forced.micros = std::max(forced.micros, micros);
  return forced;
}

SloBudget::Grant SloBudget::decide(const StepTimeModel& model, TimePoint start,
                                   std::span<const DecodeLoad> bands, std::span<const PrefillLoad> prefills,
                                   const std::optional<PrefillLoad>& waiting) noexcept {
  const StepWork decodes = with_decodes(bands);
  Grant grant;
  grant.prefill_tokens =
      static_cast<std::int32_t>(std::max<std::int64_t>(limits_.max_tokens - decodes.tokens, 0));
  if (model.is_trained() && decodes.tokens > 0) {
    const std::int32_t wanted = std::min(least_chunk_, grant.prefill_tokens);
    grant = within(model, start, bands, prefills);
    const bool starves = grant.prefill_tokens < wanted && (!prefills.empty() || waiting);
    const auto band = starves ? pressing_band(model, start, grant.micros, prefills, waiting) : std::nullopt;
    if (band) grant = relieve(model, start, bands, prefills, *band, grant);
    starved_ = starves && !band ? starved_ + 1 : 0;
  } else {
    starved_ = 0;
  }
  has_rested_ = grant.resting_from.has_value();
  return grant;
}

}  // namespace airi
