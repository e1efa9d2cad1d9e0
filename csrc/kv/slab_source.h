#pragma once

#include <cstdint>

#include "base/ids.h"
#include "base/time.h"
#include "kv/slab_exchange.h"

namespace airi {

// Where one model's scheduler asks for more blocks while it plans a step.
//
// Thread safety: none.
class SlabSource {
 public:
  // The references must outlive the source.
  SlabSource(SlabExchange& exchange, MemoryOps& ops, ModelId model)
      : exchange_(exchange), ops_(ops), model_(model) {}

  void begin_step(TimePoint now) noexcept { now_ = now; }
  // True iff the model's pool has grown, perhaps by less than `blocks`.
  [[nodiscard]] bool grow(std::int32_t blocks) { return exchange_.grow(model_, blocks, now_, ops_); }

 private:
  SlabExchange& exchange_;
  MemoryOps& ops_;
  ModelId model_;
  TimePoint now_{};
};

}  // namespace airi
