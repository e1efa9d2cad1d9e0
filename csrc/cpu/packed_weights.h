#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/aligned_buffer.h"
#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/linear_kernels.h"
#include "cpu/range.h"

namespace airi::cpu {

// Consecutive rows [rows, k] of a weight matrix, row-major without gaps.
struct WeightBlock {
  const void* data;
  std::int64_t rows;
};

// A copy of a weight matrix [n, k] in panels of kPanel outputs (see linear_kernels.h),
// padded with zeros to whole panels and whole pairs. Never refers to its source.
//
// bfloat16 weights stay bfloat16 also when sums are computed in float: the widened values
// are the same and half as many bytes are read. float weights are rounded for kBF16.
//
// Thread safety: const methods from any thread.
class PackedWeights {
 public:
  // The most depth (192 bytes of a panel each) of a block: what tiles reread stays in L2.
  // k = 14336, 512 rows, 2 threads of Zen 5: 647 -> 830 GFLOP/s.
  static constexpr std::int64_t kDepthBlock = 1024;

  // The panels of `interleave` equal matrices alternate: panel p of every matrix in turn
  // (1 = one matrix made of all blocks). Packs on the shared pool.
  // Throws InvalidArgument for sizes < 1, null data, or unequal interleaved blocks.
  PackedWeights(std::span<const WeightBlock> blocks, std::int64_t k, DType dtype, DType compute,
                bool interleave);

  // Of one matrix.
  [[nodiscard]] std::int64_t n() const noexcept { return n_; }
  [[nodiscard]] std::int64_t k() const noexcept { return k_; }
  // Panels of one matrix.
  [[nodiscard]] std::int64_t panels() const noexcept { return (n_ + kPanel - 1) / kPanel; }
  // k, or pairs.
  [[nodiscard]] std::int64_t depth() const noexcept { return depth_; }
  // Parts of the depth that a panel is stored in, and that tiles sweep at a time.
  [[nodiscard]] std::int64_t depth_blocks() const noexcept {
    return (depth_ + kDepthBlock - 1) / kDepthBlock;
  }
  [[nodiscard]] Range depth_block(std::int64_t index) const noexcept {
    return part_of(depth_, depth_blocks(), index);
  }
  [[nodiscard]] DType compute() const noexcept { return compute_; }
  [[nodiscard]] bool is_bf16() const noexcept { return is_bf16_; }
  [[nodiscard]] std::int64_t panel_bytes() const noexcept { return depth_ * kPanel * 4; }
  // The panel at `index` of all panels of all interleaved matrices.
  [[nodiscard]] const std::byte* panel(std::int64_t index) const noexcept {
    return base_ + index * panel_bytes();
  }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

  // Copies the panels to memory of the caller, who keeps bytes() bytes there for as long as this lives, and
  // gives its own back. Where the caller then moves the contents, it must bring them back before the next
  // use. Throws InvalidArgument unless the address is a multiple of a cache line. REQUIRES: no other call
  // runs.
  void move_to(std::byte* memory);

  // What is multiplied next, if anything is known to be: products of few rows bring its first panels into
  // cache as they end. REQUIRES: `next` outlives this.
  void precede(const PackedWeights& next) noexcept { next_ = &next; }
  [[nodiscard]] const PackedWeights* next() const noexcept { return next_; }

 private:
  std::int64_t n_;
  std::int64_t k_;
  std::int64_t depth_;
  DType compute_;
  bool is_bf16_;
  AlignedBuffer data_;  // empty once moved
  const std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
  const PackedWeights* next_ = nullptr;
};

}  // namespace airi::cpu
