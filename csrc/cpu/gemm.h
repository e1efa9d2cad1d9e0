#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/linear_kernels.h"
#include "cpu/packed_weights.h"
#include "cpu/range.h"
#include "cpu/thread_pool.h"

// The loops around the tile kernels: which thread computes which rows of which panels, in
// which order, so that weights come from memory once and are reused from L2. No order here
// changes a result: every sum runs over k in one order (see linear_kernels.h).

namespace airi::cpu {

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
  // What the owner of a chunk goes through, one panel after the other (see ThreadPool), and then.
  struct Run {
    const std::byte* end;    // of its panels
    const std::byte* after;  // what it reads next of the weights that follow; null where nothing is known
    std::int64_t after_lines;
  };

  // x has rows of k without gaps in the weights' compute type. `matrices` interleaved
  // matrices are multiplied, 1 or 2.
  Product(const LinearKernels& kernels, const PackedWeights& weights, int matrices, const void* x,
          std::int64_t m);

  [[nodiscard]] std::int64_t chunks() const { return row_blocks_ * panel_groups_; }
  [[nodiscard]] Range rows_of(std::int64_t chunk) const;
  [[nodiscard]] Range panels_of(std::int64_t chunk) const;
  [[nodiscard]] Run run_of(std::int64_t chunk) const;
  // How many of `rows` are computed before they are finished.
  [[nodiscard]] std::int64_t batch_rows() const { return batch_rows_; }

  // sums.of[i] = x[batch] * panel `panel` of matrix i. `batch` lies within `rows`, those of
  // the chunk, and starts at a whole number of batches. REQUIRES batch.size() <= batch_rows().
  void compute(Range rows, Range batch, std::int64_t panel, const Run& run, Sums& sums) const;

 private:
  [[nodiscard]] std::int64_t panel_groups_of(const PackedWeights& weights) const;
  void run_tile(Range rows, Range tile, std::int64_t panel, std::int64_t depth_block, const Run& run,
                float* out) const;

  const PackedWeights& weights_;
  const TileFn* tiles_;
  std::int64_t tile_rows_;
  int matrices_;
  std::int64_t m_;
  const std::byte* x_;
  std::ptrdiff_t x_stride_;  // in bytes
  std::ptrdiff_t x_bytes_per_depth_;
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
    const Product::Run run = product.run_of(chunk);
    Product::Sums sums;
    for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
      for (std::int64_t row = rows.begin; row < rows.end; row += product.batch_rows()) {
        const Range batch{row, std::min(row + product.batch_rows(), rows.end)};
        product.compute(rows, batch, panel, run, sums);
        finish(sums, batch.begin, static_cast<int>(batch.size()), panel);
      }
    }
  });
}

}  // namespace airi::cpu
