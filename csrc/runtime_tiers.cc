// Tiers of a Runtime's models: how they are shared, and how transfers end.

#include <algorithm>
#include <memory>
#include <string>

#include "base/check.h"
#include "runtime.h"

namespace airi {
namespace {

// Buffers hold at least this many memory operations where there are tiers.
constexpr std::int32_t kLeastOps = 16;

}  // namespace

// The models of the start have all of the tiers among them, as the slabs that each can count on.
void Runtime::attach_tiers() {
  if (config_.tiers.host_bytes == 0) return;
  std::int64_t left = 0;
  for (std::int32_t i = 0; i < std::ssize(models_); ++i) left += tier_weight(ModelId{i});
  std::int64_t host = host_space_.size();
  std::int64_t disk = disk_space_.size();
  for (std::int32_t i = 0; left > 0; ++i) {
    const std::int64_t own = tier_weight(ModelId{i});
    if (own == 0) continue;
    const TierRanges part{.host = host_space_.take(host * own / left),
                          .disk = disk_space_.take(disk * own / left)};
    host -= part.host.count;
    disk -= part.disk.count;
    left -= own;
    attach_tiers(ModelId{i}, part);
  }
}

// One that comes later gets what others have left, up to what would have been its part.
void Runtime::attach_tiers_late(ModelId model) {
  const std::int64_t own = tier_weight(model);
  if (own == 0 || config_.tiers.host_bytes == 0) return;
  std::int64_t all = own;
  for (std::int32_t i = 0; i < std::ssize(models_); ++i) {
    if (models_[static_cast<std::size_t>(i)].scheduler && ModelId{i} != model) all += tier_weight(ModelId{i});
  }
  attach_tiers(model, {.host = host_space_.take(host_space_.size() * own / all),
                       .disk = disk_space_.take(disk_space_.size() * own / all)});
}

std::int64_t Runtime::tier_weight(ModelId model) const {
  return models_[index(model)].config.enable_prefix_caching ? arena_.guaranteed(model) : 0;
}

void Runtime::attach_tiers(ModelId id, const TierRanges& ranges) {
  Hosted& model = models_[index(id)];
  const std::int64_t granules = model.config.bytes_per_block / kGranuleBytes;
  TierSlots host(ranges.host.slots(granules));
  TierSlots disk(ranges.disk.slots(granules));
  if (host.size() == 0) {
    give_back(ranges);
    return;
  }
  const std::int32_t copies = host.size() + disk.size();
  const auto& entries = model.scheduler->tables().entries();
  const TierOptions options{
      .model = id, .granules_per_block = granules, .store_on_reuse = config_.tiers.store_on_reuse};
  model.tier_ranges = ranges;
  model.tiers =
      std::make_unique<TierCache>(options, entries, static_cast<std::int32_t>(entries.size()) + copies,
                                  std::move(host), std::move(disk), transfers_, ops_);
  model.scheduler->attach(*model.tiers, copies);
}

void Runtime::check_tier_buffers(const std::vector<StepBuffers>& buffers) const {
  if (config_.tiers.host_bytes == 0) return;
  const std::size_t least = std::max<std::size_t>(kLeastOps, ops_.step().size());
  for (const StepBuffers& set : buffers) {
    if (set.ops.size() / StepWriter::kOpColumns >= least) continue;
    throw InvalidArgument("buffer ops must hold at least " + std::to_string(least) + ", got " +
                          std::to_string(set.ops.size() / StepWriter::kOpColumns));
  }
}

void Runtime::give_back(const TierRanges& ranges) {
  host_space_.give_back(ranges.host);
  disk_space_.give_back(ranges.disk);
}

// Others may have the slots of a model that is gone once no transfer touches them.
void Runtime::release_quiet_tiers(ModelId id) {
  Hosted& model = models_[index(id)];
  if (model.scheduler || !model.tiers || !model.tiers->is_quiet()) return;
  model.tiers.reset();
  give_back(model.tier_ranges);
}

// Weights will be written to the slab while no step runs: what has yet to be copied from it never is.
void Runtime::take_back_ops(SlabId slab) {
  const std::int64_t granules = arena_.slab_bytes() / kGranuleBytes;
  for (const TransferId id : ops_.take_back(raw(slab) * granules, granules)) {
    end_transfer(id, TransferEnd::kCancelled, 0);
  }
}

// What was reported twice, or never begun, is nobody's.
void Runtime::end_transfer(TransferId id, TransferEnd end, Micros micros) {
  const auto transfer = transfers_.end(id, end, micros);
  if (!transfer) return;
  Hosted& model = models_[index(transfer->model)];
  if (model.scheduler) {
    model.scheduler->complete(*transfer, end);
  } else {
    model.tiers->complete(*transfer, end);
    release_quiet_tiers(transfer->model);
  }
}

void Runtime::end_transfers() {
  for (const auto& [id, ok, micros] : mail_.transfers) {
    end_transfer(id, ok ? TransferEnd::kDone : TransferEnd::kFailed, micros);
  }
  mail_.transfers.clear();
}

}  // namespace airi
