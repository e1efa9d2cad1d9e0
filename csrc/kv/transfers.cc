#include "kv/transfers.h"

#include <algorithm>
#include <limits>

namespace airi {
namespace {

constexpr double kStep = 0.1;         // of a measurement
constexpr double kForgetting = 0.02;  // back to the start
constexpr double kMostRate = 1e9;     // bytes per microsecond: clocks are too coarse for short transfers

}  // namespace

TransferId Transfers::begin(const Transfer& transfer) {
  const TransferId id{++last_id_};
  pending_.emplace(id, transfer).first->second.id = id;
  Queue& queue = queues_[index(transfer.kind)];
  ++queue.count;
  queue.bytes += transfer.bytes;
  return id;
}

std::optional<Transfer> Transfers::end(TransferId id, TransferEnd how, Micros micros) {
  const auto known = pending_.find(id);
  if (known == pending_.end()) return std::nullopt;
  const Transfer transfer = known->second;
  pending_.erase(known);
  Queue& queue = queues_[index(transfer.kind)];
  --queue.count;
  queue.bytes -= transfer.bytes;
  double& rate = rates_[index(transfer.kind)];
  // A kind that never arrives stays one: it was told so, not measured.
  if (how == TransferEnd::kDone && micros >= 0 && rate > 0) {
    const double per_byte = static_cast<double>(micros) / static_cast<double>(transfer.bytes);
    const double fitted = 1 / rate + kStep * (per_byte - 1 / rate);
    rate = std::min(1 / fitted, kMostRate);
  }
  return transfer;
}

double Transfers::estimate(MemoryOpKind kind, std::int64_t count, std::int64_t bytes) const noexcept {
  const double rate = rates_[index(kind)];
  if (rate <= 0) return std::numeric_limits<double>::infinity();
  return static_cast<double>(queues_[index(kind)].bytes + count * bytes) / rate;
}

void Transfers::forget_some(MemoryOpKind kind) noexcept {
  double& rate = rates_[index(kind)];
  rate += kForgetting * (start_[index(kind)] - rate);
}

}  // namespace airi
