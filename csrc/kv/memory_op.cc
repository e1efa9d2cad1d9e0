#include "kv/memory_op.h"

#include <algorithm>

namespace airi {

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

}  // namespace airi
