#include "sched/prefix_loader.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace airi {

PrefixLoader::PrefixLoader(const Options& options, BlockTables& tables, RunningSet& running,
                           const StepTimeModel& step_time)
    : options_(options), tables_(tables), running_(running), step_time_(step_time) {}

double PrefixLoader::load_micros(std::int32_t blocks) const noexcept {
  const TierCache& tiers = *tables_.pool().tiers();
  const std::int32_t fetches = on_disk_[static_cast<std::size_t>(blocks)];
  double micros = tiers.transfers().estimate(MemoryOpKind::kLoad, blocks, tiers.block_bytes());
  if (fetches > 0) micros += tiers.transfers().estimate(MemoryOpKind::kFetch, fetches, tiers.block_bytes());
  return micros;
}

std::span<const BlockPool::Known> PrefixLoader::worth_loading(const Request& request,
                                                              const PrefixMatch& match) {
  if (request.loads_nothing) return {};
  const auto known = tables_.loadable(request, match);
  if (known.empty()) return {};
  TierCache& tiers = *tables_.pool().tiers();
  on_disk_.assign(1, 0);
  for (const BlockPool::Known& k : known) {
    on_disk_.push_back(on_disk_.back() + (tiers.source(k.entry) != TierCache::Source::kHost ? 1 : 0));
  }
  const LoadableSpan span{.start = match.num_blocks() * tables_.block_size(),
                          .num_blocks = static_cast<std::int32_t>(known.size()),
                          .length = request.length(),
                          .block_size = tables_.block_size(),
                          .chunk = options_.chunk};
  const std::int32_t best = best_load(step_time_, span, [this](std::int32_t n) { return load_micros(n); });
  if (best == 0)
    tiers.transfers().forget_some(on_disk_.back() > 0 ? MemoryOpKind::kFetch : MemoryOpKind::kLoad);
  return known.first(static_cast<std::size_t>(best));
}

void PrefixLoader::begin(Request& request, std::span<const BlockPool::Known> blocks, TimePoint now,
                         StepWriter& out) {
  AIRI_DCHECK(request.phase == Phase::kLoading);
  Load load{.request = &request,
            .first_block = static_cast<std::int32_t>(request.block_table.size()),
            .deadline = now + options_.timeout,
            .parts = {}};
  for (const BlockPool::Known& known : blocks) load.parts.push_back({.known = known});
  // Blocks that are evicted to make room are stored; not in place of what is to be loaded.
  TierCache& tiers = *tables_.pool().tiers();
  pins_.clear();
  for (const Part& part : load.parts) {
    const bool known = tables_.pool().is_same(part.known);
    if (known && tiers.source(part.known.entry) == TierCache::Source::kHost) {
      pins_.push_back(tiers.pin(part.known.entry));
    }
  }
  tables_.grow(request, static_cast<std::int32_t>(blocks.size()) * tables_.block_size(), out);
  loads_.push_back(std::move(load));
  ask(loads_.back());
  for (const TierPin& pin : pins_) tiers.unpin(pin);
}

void PrefixLoader::prefetch(Request& request, TimePoint now) {
  TierCache* tiers = tables_.pool().tiers();
  if (tiers == nullptr || tiers->disk().size() == 0) return;
  tables_.match(request, match_);
  for (const BlockPool::Known& known : worth_loading(request, match_)) {
    if (tiers->source(known.entry) != TierCache::Source::kDisk) continue;
    const auto transfer = tiers->fetch(known.entry);
    if (!transfer) break;
    prefetches_.emplace_back(*transfer, now + options_.timeout);
  }
  tables_.pool().drop_lost();
}

void PrefixLoader::expire_prefetches(TimePoint now) {
  bool cancelled = false;
  for (; !prefetches_.empty() && prefetches_.front().second <= now; prefetches_.pop_front()) {
    cancelled = tables_.pool().tiers()->cancel(prefetches_.front().first) || cancelled;
  }
  if (cancelled) tables_.pool().drop_lost();
}

std::int32_t PrefixLoader::num_in_state(const Load& load, PartState state) noexcept {
  return static_cast<std::int32_t>(std::ranges::count(load.parts, state, &Part::state));
}

// What comes behind a part that failed is not needed; but nobody may write blocks of a request that goes on.
bool PrefixLoader::has_ended(const Load& load) noexcept {
  if (num_in_state(load, PartState::kLoading) > 0) return false;
  for (const Part& part : load.parts) {
    if (part.state == PartState::kFailed) return true;
    if (part.state == PartState::kWaiting) return false;
  }
  return true;
}

// False once there is nothing more to wait for, or no more time.
bool PrefixLoader::goes_on(Load& load, TimePoint now) {
  ask(load);
  if (now < load.deadline) return !has_ended(load);
  cancel_what_waits(load);
  return false;
}

void PrefixLoader::ask(Load& load) {
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(load.parts.size()); ++i) {
    Part& part = load.parts[static_cast<std::size_t>(i)];
    if (part.state == PartState::kFailed) break;
    if (part.state == PartState::kWaiting) ask_for(load, i);
  }
  tables_.pool().drop_lost();
}

void PrefixLoader::ask_for(Load& load, std::int32_t index_of_part) {
  Part& part = load.parts[static_cast<std::size_t>(index_of_part)];
  TierCache& tiers = *tables_.pool().tiers();
  const bool known = tables_.pool().is_same(part.known);
  switch (known ? tiers.source(part.known.entry) : TierCache::Source::kNone) {
    case TierCache::Source::kNone:
      part.state = PartState::kFailed;
      return;
    case TierCache::Source::kHost: {
      const std::int32_t at = load.first_block + index_of_part;
      const BlockId block = load.request->block_table[static_cast<std::size_t>(at)];
      tables_.pool().hold(block);
      part.transfer = tiers.load(part.known.entry, block, load.request->serial);
      part.state = PartState::kLoading;
      return;
    }
    case TierCache::Source::kDisk:
      // Where the host is full of what is being copied, it has a slot again when that has been.
      if (!tiers.fetch(part.known.entry) && tiers.transfers().num_pending() == 0) {
        part.state = PartState::kFailed;
      }
      return;
    case TierCache::Source::kArriving:
      return;
  }
}

void PrefixLoader::complete(const Transfer& transfer, TransferEnd end) {
  const bool usable = tables_.pool().tiers()->complete(transfer, end);
  tables_.pool().drop_lost();
  if (transfer.kind != MemoryOpKind::kLoad) return;
  const auto load =
      std::ranges::find_if(loads_, [&](const Load& l) { return l.request->serial == transfer.owner; });
  if (load != loads_.end()) {
    // It may be of a load of the same request that was abandoned.
    const auto part = std::ranges::find_if(load->parts, [&](const Part& p) {
      return p.state == PartState::kLoading && p.transfer == transfer.id;
    });
    if (part != load->parts.end()) part->state = usable ? PartState::kDone : PartState::kFailed;
  }
  tables_.pool().release(std::span(&*transfer.block, 1));
}

void PrefixLoader::cancel_what_waits(Load& load) {
  for (Part& part : load.parts) {
    if (part.state != PartState::kLoading || !tables_.pool().tiers()->cancel(part.transfer)) continue;
    const auto at = static_cast<std::size_t>(load.first_block + (&part - load.parts.data()));
    tables_.pool().release(std::span(load.request->block_table).subspan(at, 1));
    part.state = PartState::kFailed;
  }
}

// The request goes on with the leading blocks that have come. Returns how many others were to come.
std::int32_t PrefixLoader::settle(Load& load) {
  Request& request = *load.request;
  const auto missed =
      std::ranges::find_if(load.parts, [](const Part& p) { return p.state != PartState::kDone; });
  const auto come = static_cast<std::int32_t>(missed - load.parts.begin());
  request.num_computed = (load.first_block + come) * tables_.block_size();
  running_.begin_prefill(&request);
  return static_cast<std::int32_t>(load.parts.size()) - come;
}

void PrefixLoader::abandon(const Request& request) {
  const auto load = std::ranges::find(loads_, &request, &Load::request);
  AIRI_CHECK(load != loads_.end()) << "request " << raw(request.id) << " loads nothing";
  cancel_what_waits(*load);
  loads_.erase(load);
}

}  // namespace airi
