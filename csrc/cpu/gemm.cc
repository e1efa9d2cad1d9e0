#include "cpu/gemm.h"

#include <cstring>

#include "cpu/bf16.h"

namespace airi::cpu {
namespace {

// Rows of x that one chunk works through for each panel: they stay in L2 beside it.
constexpr std::int64_t kRowBlockBytes = 384 << 10;
// Chunks per thread, so that a thread that was interrupted costs little.
constexpr std::int64_t kChunksPerThread = 6;
// How far ahead of the weights in use the prefetch runs where they come from memory.
constexpr std::int64_t kPrefetchBytes = 8192;

// Where the panels that this thread has brought into L2 end, and what it came to before they were there.
thread_local const std::byte* warm_until = nullptr;
thread_local const std::byte* streamed = nullptr;

// x in the form that the kernels read, where they cannot read it as it is; kept by the
// thread that makes the product.
thread_local AlignedBuffer converted_x;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Rows of floats, padded with a zero to whole pairs.
std::ptrdiff_t widen_x(const std::uint16_t* x, std::int64_t m, std::int64_t k) {
  const std::int64_t padded = ceil_div(k, 2) * 2;
  converted_x.reserve(static_cast<std::size_t>(m * padded) * sizeof(float));
  auto* out = converted_x.as<float>();
  for (std::int64_t r = 0; r < m; ++r, x += k, out += padded) {
    for (std::int64_t i = 0; i < k; ++i) out[i] = bf16_to_float(x[i]);
    if (padded > k) out[k] = 0.0F;
  }
  return padded * static_cast<std::ptrdiff_t>(sizeof(float));
}

// Rows of k elements of `element` bytes, padded with a zero to whole pairs.
std::ptrdiff_t pad_x(const void* x, std::int64_t m, std::int64_t k, std::size_t element) {
  const std::size_t row = static_cast<std::size_t>(k) * element;
  const std::size_t padded = row + element * static_cast<std::size_t>(k % 2);
  converted_x.reserve(static_cast<std::size_t>(m) * padded);
  for (std::size_t r = 0; r < static_cast<std::size_t>(m); ++r) {
    std::byte* out = converted_x.data() + r * padded;
    std::memcpy(out, static_cast<const std::byte*>(x) + r * row, row);
    std::memset(out + row, 0, padded - row);
  }
  return static_cast<std::ptrdiff_t>(padded);
}

const TileFn* tiles_for(const LinearKernels& kernels, const PackedWeights& weights) {
  if (!weights.is_bf16()) return kernels.plain;
  return weights.compute() == DType::kBF16 && kernels.paired != nullptr ? kernels.paired : kernels.widening;
}

// Rows of the tiles that m rows are shared by, `most` at most. One with few rows would take as
// long as one with many: its sums wait for each other.
std::int64_t nearly_equal(std::int64_t m, std::int64_t most) {
  return m <= most ? most : ceil_div(m, ceil_div(m, most));
}

// One tile reads weights once, in their order: it stays ahead of itself. Where tiles follow
// that read them again from L2, there is time to bring the next ones in: each tile takes its
// share, but for the first one over weights that nobody announced. What lies behind the run
// is left to other threads: its owner goes on with what follows.
void plan_prefetch(TileArgs& args, std::int64_t tile_count, std::int64_t tile, const Product::Run& run) {
  const auto* panel = static_cast<const std::byte*>(args.panel);
  if (tile == 0) streamed = tile_count == 1 || warm_until != panel ? panel : nullptr;
  const std::int64_t late = streamed == panel ? 1 : 0;
  if (tile < late) {
    args.stream_bytes = kPrefetchBytes;
    return;
  }
  const std::int64_t lines = args.depth * kPanel * 4 / 64;
  const bool is_last = panel + lines * 64 >= run.end;
  warm_until = is_last ? run.after : panel + lines * 64;
  if (warm_until == nullptr) return;
  const Range share = part_of(is_last ? run.after_lines : lines, tile_count - late, tile - late);
  args.next = warm_until + share.begin * 64;
  args.next_lines = share.size();
}

}  // namespace

Product::Product(const LinearKernels& kernels, const PackedWeights& weights, int matrices, const void* x,
                 std::int64_t m)
    : weights_(weights),
      tiles_(tiles_for(kernels, weights)),
      tile_rows_(nearly_equal(m, kernels.tile_rows)),
      matrices_(matrices),
      m_(m),
      x_(static_cast<const std::byte*>(x)) {
  const std::int64_t k = weights.k();
  const bool bf16_x = weights.compute() == DType::kBF16;
  const auto element = size_of(weights.compute());
  x_stride_ = k * static_cast<std::ptrdiff_t>(element);
  if (bf16_x && tiles_ == kernels.widening) {
    x_stride_ = widen_x(static_cast<const std::uint16_t*>(x), m, k);
    x_ = converted_x.data();
  } else if (weights.is_bf16() && (k % 2 != 0 || reinterpret_cast<std::uintptr_t>(x) % 4 != 0)) {
    x_stride_ = pad_x(x, m, k, element);
    x_ = converted_x.data();
  }
  x_bytes_per_depth_ = tiles_ == kernels.widening ? 2 * sizeof(float) : 4;
  const std::int64_t blocks = weights.depth_blocks();
  const std::int64_t fit = std::max(tile_rows_, kRowBlockBytes / ceil_div(x_stride_, blocks));
  row_blocks_ = ceil_div(m, fit);
  panel_groups_ = panel_groups_of(weights);
  // One matrix in one sweep is finished tile by tile, while its sums are in L1. Interleaved
  // ones take turns by runs of tiles: hardware prefetchers follow one panel, not two.
  const bool by_tile = matrices == 1 && blocks == 1;
  batch_rows_ = by_tile ? tile_rows_ : kBatchRows / tile_rows_ * tile_rows_;
}

Range Product::rows_of(std::int64_t chunk) const {
  const Range tiles = part_of(ceil_div(m_, tile_rows_), row_blocks_, chunk / panel_groups_);
  return {tiles.begin * tile_rows_, std::min(m_, tiles.end * tile_rows_)};
}

Range Product::panels_of(std::int64_t chunk) const {
  return part_of(weights_.panels(), panel_groups_, chunk % panel_groups_);
}

std::int64_t Product::panel_groups_of(const PackedWeights& weights) const {
  const std::int64_t groups =
      shared_pool().size() * kChunksPerThread / std::max<std::int64_t>(1, row_blocks_);
  return std::clamp<std::int64_t>(groups, 1, weights.panels());
}

Product::Run Product::run_of(std::int64_t chunk) const {
  const std::int64_t threads = shared_pool().size();
  const std::int64_t thread = ceil_div((chunk + 1) * threads, chunks()) - 1;
  const std::int64_t last =
      std::min(chunks() * (thread + 1) / threads, (chunk / panel_groups_ + 1) * panel_groups_) - 1;
  Run run{.end = weights_.panel(panels_of(last).end * matrices_), .after = nullptr, .after_lines = 0};
  const PackedWeights* next = weights_.next();
  // With more rows one panel that is late costs little.
  if (next == nullptr || row_blocks_ > 1) return run;
  const std::int64_t groups = panel_groups_of(*next);
  run.after = next->panel(part_of(next->panels(), groups, groups * thread / threads).begin);
  run.after_lines = next->depth_block(0).size() * kPanel * 4 / 64;
  return run;
}

void Product::compute(Range rows, Range batch, std::int64_t panel, const Run& run, Sums& sums) const {
  for (int i = 0; i < matrices_; ++i) {
    for (std::int64_t block = 0; block < weights_.depth_blocks(); ++block) {
      for (std::int64_t row = batch.begin; row < batch.end; row += tile_rows_) {
        const Range tile{row, std::min(row + tile_rows_, batch.end)};
        run_tile(rows, tile, panel * matrices_ + i, block, run, sums.of[i] + (row - batch.begin) * kPanel);
      }
    }
  }
}

void Product::run_tile(Range rows, Range tile, std::int64_t panel, std::int64_t depth_block, const Run& run,
                       float* out) const {
  const Range depth = weights_.depth_block(depth_block);
  TileArgs args{.x = x_ + tile.begin * x_stride_ + depth.begin * x_bytes_per_depth_,
                .x_stride = x_stride_,
                .panel = weights_.panel(panel) + depth.begin * kPanel * 4,
                .depth = depth.size(),
                .accumulate = depth_block > 0,
                .out = out,
                .stream_bytes = 0,
                .next = nullptr,
                .next_lines = 0};
  plan_prefetch(args, ceil_div(rows.size(), tile_rows_), (tile.begin - rows.begin) / tile_rows_, run);
  tiles_[tile.size() - 1](args);
}

}  // namespace airi::cpu
