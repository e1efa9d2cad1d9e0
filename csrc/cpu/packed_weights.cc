#include "cpu/packed_weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/check.h"
#include "cpu/bf16.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

// Words of 32 bits of one source row that are transposed at a time: a cache line.
constexpr std::int64_t kBlockWords = 16;

// The word at `index` of a packed column: k for floats, a pair for bfloat16.
struct FloatRow {
  const float* row;
  std::uint32_t word(std::int64_t index) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, row + index, sizeof bits);
    return bits;
  }
};

struct Bf16Row {
  const std::uint16_t* row;
  std::int64_t k;
  std::uint32_t word(std::int64_t index) const {
    std::uint32_t pair = 0;
    if (2 * index + 1 < k) {
      std::memcpy(&pair, row + 2 * index, sizeof pair);
      return pair;
    }
    std::uint16_t last = 0;
    std::memcpy(&last, row + 2 * index, sizeof last);
    return last;
  }
};

struct RoundedRow {
  const float* row;
  std::int64_t k;
  std::uint32_t word(std::int64_t index) const {
    const std::uint32_t even = float_to_bf16(row[2 * index]);
    return 2 * index + 1 < k ? even | static_cast<std::uint32_t>(float_to_bf16(row[2 * index + 1])) << 16
                             : even;
  }
};

using PanelRows = std::array<const std::byte*, kPanel>;  // null: a row of padding

// One block of a panel's depth.
template <class MakeRow>
void pack_block(const PanelRows& rows, Range depth, std::uint32_t* out, MakeRow make_row) {
  for (std::int64_t begin = depth.begin; begin < depth.end; begin += kBlockWords) {
    const std::int64_t end = std::min(begin + kBlockWords, depth.end);
    for (int column = 0; column < kPanel; ++column) {
      std::uint32_t* to = out + column / kStrip * depth.size() * kStrip + column % kStrip;
      const std::byte* source = rows[static_cast<std::size_t>(column)];
      for (std::int64_t i = begin; i < end; ++i) {
        to[(i - depth.begin) * kStrip] = source == nullptr ? 0 : make_row(source).word(i);
      }
    }
  }
}

std::int64_t checked_rows(std::span<const WeightBlock> blocks, bool interleave) {
  if (blocks.empty()) throw InvalidArgument("weight blocks must not be empty");
  std::int64_t rows = 0;
  for (const WeightBlock& block : blocks) {
    if (block.data == nullptr) throw InvalidArgument("weight address must not be 0");
    if (block.rows < 1) throw InvalidArgument("weight rows must be >= 1, got " + std::to_string(block.rows));
    if (interleave && block.rows != blocks.front().rows) {
      throw InvalidArgument("interleaved matrices must have equal rows, got " + std::to_string(block.rows) +
                            " and " + std::to_string(blocks.front().rows));
    }
    rows = interleave ? block.rows : rows + block.rows;
  }
  return rows;
}

// The source rows of panel `index` among `blocks`.
PanelRows rows_of_panel(std::span<const WeightBlock> blocks, std::int64_t index, std::size_t row_bytes) {
  PanelRows rows{};
  std::size_t column = 0;
  std::int64_t skip = index * kPanel;
  for (const WeightBlock& block : blocks) {
    for (std::int64_t row = skip; row < block.rows && column < rows.size(); ++row) {
      rows[column++] = static_cast<const std::byte*>(block.data) + static_cast<std::size_t>(row) * row_bytes;
    }
    skip = std::max<std::int64_t>(0, skip - block.rows);
  }
  return rows;
}

}  // namespace

PackedWeights::PackedWeights(std::span<const WeightBlock> blocks, std::int64_t k, DType dtype, DType compute,
                             bool interleave)
    : n_(checked_rows(blocks, interleave)),
      k_(k),
      depth_(0),
      compute_(compute),
      is_bf16_(dtype == DType::kBF16 || compute == DType::kBF16) {
  if (k < 1) throw InvalidArgument("k must be >= 1, got " + std::to_string(k));
  depth_ = is_bf16_ ? (k + 1) / 2 : k;
  const std::int64_t matrices = interleave ? static_cast<std::int64_t>(blocks.size()) : 1;
  const std::int64_t total = panels() * matrices;
  data_ = AlignedBuffer(static_cast<std::size_t>(total * panel_bytes()));
  base_ = data_.data();
  bytes_ = data_.size();
  const std::size_t row_bytes = static_cast<std::size_t>(k) * size_of(dtype);
  shared_pool().parallel_for(total, [&](std::int64_t i) {
    const auto source = interleave ? blocks.subspan(static_cast<std::size_t>(i % matrices), 1) : blocks;
    const PanelRows rows = rows_of_panel(source, i / matrices, row_bytes);
    auto* out = reinterpret_cast<std::uint32_t*>(data_.data() + i * panel_bytes());
    for (std::int64_t block = 0; block < depth_blocks(); ++block) {
      const Range depth = depth_block(block);
      std::uint32_t* to = out + depth.begin * kPanel;
      if (!is_bf16_) {
        pack_block(rows, depth, to,
                   [](const std::byte* p) { return FloatRow{reinterpret_cast<const float*>(p)}; });
      } else if (dtype == DType::kBF16) {
        pack_block(rows, depth, to,
                   [k](const std::byte* p) { return Bf16Row{reinterpret_cast<const std::uint16_t*>(p), k}; });
      } else {
        pack_block(rows, depth, to,
                   [k](const std::byte* p) { return RoundedRow{reinterpret_cast<const float*>(p), k}; });
      }
    }
  });
}

void PackedWeights::move_to(std::byte* memory) {
  if (memory == nullptr || reinterpret_cast<std::uintptr_t>(memory) % 64 != 0) {
    throw InvalidArgument("memory for packed weights must be at a multiple of 64, got " +
                          std::to_string(reinterpret_cast<std::uintptr_t>(memory)));
  }
  std::memcpy(memory, base_, bytes_);
  base_ = memory;
  data_ = AlignedBuffer();
}

}  // namespace airi::cpu
