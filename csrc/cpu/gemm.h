#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/linear_kernels.h"
#include "cpu/packed_weights.h"
#include "cpu/thread_pool.h"

// The loops around the tile kernels: which thread computes which rows of which panels, in
// which order, so that weights come from memory once and are reused from L2. No order here
// changes a result: every sum runs over k in one order (see linear_kernels.h).

namespace airi::cpu {

// [begin, end)
struct Range {
  std::int64_t begin, end;
  [[nodiscard]] std::int64_t size() const { return end - begin; }
};

// Number `index` of `parts` nearly equal parts of [0, total).
constexpr Range part_of(std::int64_t total, std::int64_t parts, std::int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

// One product of x [m, k] with packed weights, shared by all threads that work on it.
//
// Thread safety: const methods from any thread. Lives no longer than the call it is made
// for: x may be converted into a buffer of the thread that made it.
class Product {
 public:
  // Rows whose sums are kept before they are finished.
  static constexpr std::int64_t kBatchRows = 96;
  // [matrix][row][column of the panel], for two interleaved matrices at most.
  struct Sums {
    alignas(64) float of[2][kBatchRows * kPanel];
  };

  // x has rows of k without gaps in the weights' compute type. `matrices` interleaved
  // matrices are multiplied, 1 or 2.
  Product(const LinearKernels& kernels, const PackedWeights& weights, int matrices, const void* x,
          std::int64_t m);

  [[nodiscard]] std::int64_t chunks() const { return row_blocks_ * panel_groups_; }
  [[nodiscard]] Range rows_of(std::int64_t chunk) const;
  [[nodiscard]] Range panels_of(std::int64_t chunk) const;
  // Where the panels end that the chunk's owner goes through one after the other (see ThreadPool).
  [[nodiscard]] std::int64_t run_end(std::int64_t chunk) const;
  // How many of `rows` are computed before they are finished.
  [[nodiscard]] std::int64_t batch_rows() const { return batch_rows_; }

  // sums.of[i] = x[batch] * panel `panel` of matrix i. `batch` lies within `rows`, those of
  // the chunk, and starts at a whole number of batches. REQUIRES batch.size() <= batch_rows().
  void compute(Range rows, Range batch, std::int64_t panel, std::int64_t run_end, Sums& sums) const;

 private:
  void run_tile(Range rows, Range tile, std::int64_t panel, std::int64_t depth_block, const std::byte* end,
                float* out) const;

  const PackedWeights& weights_;
  const TileFn* tiles_;
  const int* sweeps_;
  std::int64_t tile_rows_;
  int matrices_;
  std::int64_t m_;
  const std::byte* x_;
  std::ptrdiff_t x_stride_;  // in bytes
  std::ptrdiff_t x_bytes_per_depth_;
  std::int64_t depth_blocks_;
  std::int64_t row_blocks_;
  std::int64_t panel_groups_;
  std::int64_t batch_rows_;
};

// Computes a product on the shared pool and hands it in parts to
// finish(sums, first row, rows, panel).
template <class Finish>
void multiply(const Product& product, Finish&& finish) {
  shared_pool().parallel_for(product.chunks(), [&](std::int64_t chunk) {
    const Range rows = product.rows_of(chunk);
    const Range panels = product.panels_of(chunk);
    const std::int64_t run_end = product.run_end(chunk);
    Product::Sums sums;
    for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
      for (std::int64_t row = rows.begin; row < rows.end; row += product.batch_rows()) {
        const Range batch{row, std::min(row + product.batch_rows(), rows.end)};
        product.compute(rows, batch, panel, run_end, sums);
        finish(sums, batch.begin, static_cast<int>(batch.size()), panel);
      }
    }
  });
}

}  // namespace airi::cpu
