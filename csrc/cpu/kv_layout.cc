#include "cpu/kv_layout.h"

#include <string>

#include "base/check.h"

namespace airi::cpu {
namespace {

void require(bool ok, const char* field, std::int64_t value, const std::string& accepted) {
  if (ok) return;
  throw InvalidArgument("KvLayout: " + std::string(field) + " is " + std::to_string(value) +
                        ", accepted is " + accepted);
}

}  // namespace

void KvLayout::check() const {
  if (base == nullptr) throw InvalidArgument("KvLayout: base is 0, accepted is the arena's address");
  require(block_size >= 1 && block_size <= kMaxBlockSize, "block_size", block_size,
          "1 to " + std::to_string(kMaxBlockSize));
  require(num_kv_heads >= 1, "num_kv_heads", num_kv_heads, "1 or more");
  require(head_dim >= 8 && head_dim <= kMaxHeadDim && head_dim % 8 == 0, "head_dim", head_dim,
          "a multiple of 8 from 8 to " + std::to_string(kMaxHeadDim));
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t row = head_dim * element;
  const std::string accepted = "a multiple of " + std::to_string(element) + " from " + std::to_string(row);
  const auto stride = [&](const char* field, std::int64_t value) {
    require(value >= row && value % element == 0, field, value, accepted);
  };
  stride("head_stride", head_stride);
  stride("kv_stride", kv_stride);
  stride("token_stride", token_stride);
}

}  // namespace airi::cpu
