#include "kv/memory_op.h"

#include <algorithm>
#include <optional>

namespace airi {
namespace {

// Where on the device it reads or writes; nothing for one that does neither.
std::optional<std::int64_t> device_granule(const MemoryOp& op) noexcept {
  switch (op.kind) {
    case MemoryOpKind::kZero:
    case MemoryOpKind::kStore:
      return op.from;
    case MemoryOpKind::kLoad:
      return op.to;
    case MemoryOpKind::kSpill:
    case MemoryOpKind::kFetch:
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

void MemoryOps::begin_step(std::int32_t capacity) {
  capacity_ = capacity;
  while (room() > 0 && !waiting_.empty()) {
    step_.push_back(waiting_.front());
    waiting_.pop_front();
  }
}

bool MemoryOps::try_add(const MemoryOp& op) {
  if (room() <= 0) return false;
  step_.push_back(op);
  return true;
}

void MemoryOps::add(const MemoryOp& op) {
  if (!waiting_.empty() || !try_add(op)) waiting_.push_back(op);
}

bool MemoryOps::cancel(TransferId id) {
  const auto at = std::ranges::find(waiting_, id, &MemoryOp::id);
  if (at == waiting_.end()) return false;
  waiting_.erase(at);
  return true;
}

std::vector<TransferId> MemoryOps::take_back(std::int64_t first, std::int64_t count) {
  std::vector<TransferId> transfers;
  const auto concerns = [=](const MemoryOp& op) {
    const auto at = device_granule(op);
    return at && *at >= first && *at < first + count;
  };
  const auto take = [&](auto& ops) {
    for (const MemoryOp& op : ops) {
      if (concerns(op) && op.kind != MemoryOpKind::kZero) transfers.push_back(op.id);
    }
    std::erase_if(ops, concerns);
  };
  take(step_);
  take(waiting_);
  return transfers;
}

}  // namespace airi
