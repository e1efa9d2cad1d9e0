// Tiers of a Runtime's models: how they are set up, and how transfers end.

#include <algorithm>
#include <memory>
#include <string>

#include "runtime.h"

namespace airi {
namespace {

// Buffers hold at least this many memory operations where there are tiers.
constexpr std::int32_t kLeastOps = 16;

}  // namespace

// Models whose slabs move have no tiers, nor have those that come later: all of them is given away.
void Runtime::attach_tiers(const std::vector<ModelConfig>& models) {
  const TierConfig& config = config_.tiers;
  if (config.host_bytes == 0) return;
  for (const StepWriter& writer : writers_) {
    if (writer.max_ops() >= kLeastOps) continue;
    throw InvalidArgument("buffer ops must hold at least " + std::to_string(kLeastOps) + ", got " +
                          std::to_string(writer.max_ops()));
  }
  std::vector<std::int32_t> slabs;
  for (std::int32_t i = 0; i < std::ssize(models); ++i) slabs.push_back(arena_.guaranteed(ModelId{i}));
  const auto host = split_tier(config.host_bytes, models, slabs);
  const auto disk = split_tier(config.disk_bytes, models, slabs);
  for (std::size_t i = 0; i < models.size(); ++i) {
    // What a transfer writes cannot move, and slabs must be able to.
    if (!models[i].enable_prefix_caching || models[i].is_elastic() || host[i].num_slots == 0) continue;
    const std::int64_t granules = models[i].bytes_per_block / kGranuleBytes;
    const std::int32_t copies = host[i].num_slots + disk[i].num_slots;
    const auto& entries = models_[i].scheduler->tables().entries();
    const TierOptions options{.model = ModelId{static_cast<std::int32_t>(i)},
                              .granules_per_block = granules,
                              .store_on_reuse = config.store_on_reuse};
    models_[i].tiers = std::make_unique<TierCache>(
        options, entries, static_cast<std::int32_t>(entries.size()) + copies,
        TierSlots(host[i].granules(granules)), TierSlots(disk[i].granules(granules)), transfers_, ops_);
    models_[i].scheduler->attach(*models_[i].tiers, copies);
  }
}

// What was reported twice, or never begun, is nobody's.
void Runtime::end_transfers() {
  for (const auto& [id, ok, micros] : mail_.transfers) {
    const TransferEnd end = ok ? TransferEnd::kDone : TransferEnd::kFailed;
    const auto transfer = transfers_.end(id, end, micros);
    if (!transfer) continue;
    Hosted& model = models_[index(transfer->model)];
    if (model.scheduler) {
      model.scheduler->complete(*transfer, end);
    } else {
      model.tiers->complete(*transfer, end);
    }
  }
  mail_.transfers.clear();
}

}  // namespace airi
