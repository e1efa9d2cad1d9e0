#include "cpu/linear.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "cpu/bf16.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

// Rows of x that one chunk works through for each panel: they stay in L2 beside it.
constexpr std::int64_t kRowBlockBytes = 384 << 10;
// Chunks per thread, so that a thread that was interrupted costs little.
constexpr std::int64_t kChunksPerThread = 6;

// x as the tile kernels read it.
struct Rows {
  const std::byte* data;
  std::ptrdiff_t stride;  // in bytes
};

// Work for one matrix product: who computes which rows of which panels.
struct Plan {
  std::int64_t row_blocks;
  std::int64_t panel_groups;
  std::int64_t panels;
  std::int64_t m;

  [[nodiscard]] std::int64_t chunks() const { return row_blocks * panel_groups; }
};

Plan make_plan(std::int64_t m, std::int64_t panels, std::int64_t row_bytes) {
  const std::int64_t fit = std::max<std::int64_t>(kMaxTileRows, kRowBlockBytes / row_bytes);
  const std::int64_t row_blocks = (m + fit - 1) / fit;
  const std::int64_t wanted = std::max<std::int64_t>(1, shared_pool().size() * kChunksPerThread / row_blocks);
  return {row_blocks, std::min(panels, wanted), panels, m};
}

// The part of [0, total) that is number `index` of `parts` nearly equal ones.
struct Range {
  std::int64_t begin, end;
};
Range part(std::int64_t total, std::int64_t parts, std::int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

// Rows whose tiles are computed before they are finished: their sums stay in L1.
constexpr std::int64_t kScratchRows = 64;
// [matrix][row][column of the panel], for two interleaved matrices at most.
struct Scratch {
  alignas(64) float sums[2][kScratchRows * kPanel];
};

// Float rows for the kernels that cannot read x as it is, kept by each calling thread.
thread_local AlignedBuffer converted_x;

Rows widened(const std::uint16_t* x, std::int64_t m, std::int64_t k) {
  const std::int64_t padded = (k + 1) / 2 * 2;
  converted_x.reserve(static_cast<std::size_t>(m * padded) * sizeof(float));
  float* out = converted_x.as<float>();
  for (std::int64_t r = 0; r < m; ++r, x += k, out += padded) {
    for (std::int64_t i = 0; i < k; ++i) out[i] = bf16_to_float(x[i]);
    if (padded > k) out[k] = 0.0F;
  }
  return {converted_x.data(), padded * static_cast<std::ptrdiff_t>(sizeof(float))};
}

// Rows of `element` bytes an entry, k of them, padded with a zero to an even number.
Rows padded_to_pairs(const void* x, std::int64_t m, std::int64_t k, std::size_t element) {
  const std::size_t row = static_cast<std::size_t>(k) * element;
  const std::size_t padded = row + element * static_cast<std::size_t>(k % 2);
  converted_x.reserve(static_cast<std::size_t>(m) * padded);
  for (std::size_t r = 0; r < static_cast<std::size_t>(m); ++r) {
    std::byte* out = converted_x.data() + r * padded;
    std::memcpy(out, static_cast<const std::byte*>(x) + r * row, row);
    std::memset(out + row, 0, padded - row);
  }
  return {converted_x.data(), static_cast<std::ptrdiff_t>(padded)};
}

const TileFn* tiles_for(const LinearKernels& kernels, const PackedWeights& weights) {
  if (!weights.is_bf16()) return kernels.plain;
  return weights.compute() == DType::kBF16 && kernels.paired != nullptr ? kernels.paired : kernels.widening;
}

Rows rows_for(const LinearKernels& kernels, const PackedWeights& weights, const void* x, std::int64_t m) {
  const std::int64_t k = weights.k();
  const std::size_t element = size_of(weights.compute());
  const bool bf16_x = weights.compute() == DType::kBF16;
  if (bf16_x && kernels.paired == nullptr) return widened(static_cast<const std::uint16_t*>(x), m, k);
  const bool pairs_aligned = !bf16_x || reinterpret_cast<std::uintptr_t>(x) % 4 == 0;
  if (weights.is_bf16() && (k % 2 != 0 || !pairs_aligned)) return padded_to_pairs(x, m, k, element);
  return {static_cast<const std::byte*>(x), k * static_cast<std::ptrdiff_t>(element)};
}

// How far ahead of the weights in use the prefetch runs when each is used only once.
constexpr std::int64_t kPrefetchBytes = 8192;
// Where the panels that this thread has brought into L2 end.
thread_local const std::byte* warm_until = nullptr;

// With one tile to a panel, weights stream through once: stay ahead of it. With more, a
// panel is read again from L2, so that there is time to bring the next one in: each tile
// takes its share. The first tile of a panel that nobody announced does the former.
void plan_prefetch(TileArgs& args, std::int64_t panel_bytes, std::int64_t tile_count, std::int64_t tile) {
  const std::byte* panel = static_cast<const std::byte*>(args.panel);
  const std::int64_t lines = panel_bytes / 64;
  if (tile_count == 1 || (tile == 0 && warm_until != panel)) {
    args.prefetch = panel + kPrefetchBytes;
    args.prefetch_lines = 3;
    args.prefetch_steps = args.depth;
    return;
  }
  warm_until = panel + panel_bytes;
  const Range slice = part(lines, tile_count, tile);
  args.prefetch = panel + panel_bytes + slice.begin * 64;
  args.prefetch_lines = tile_count == 2 ? 2 : 1;
  args.prefetch_steps = (slice.end - slice.begin) / args.prefetch_lines;
}

// Computes sums [rows][kPanel] for each panel and hands them to
// finish(sums, first row, rows, panel), where sums[i] are those of matrix i of
// `matrices` interleaved ones.
template <class Finish>
void multiply(const LinearKernels& kernels, const PackedWeights& weights, int matrices, const void* x,
              std::int64_t m, Finish&& finish) {
  if (m == 0) return;
  const Rows rows = rows_for(kernels, weights, x, m);
  const TileFn* tiles = tiles_for(kernels, weights);
  const Plan plan = make_plan(m, weights.panels(), rows.stride);
  shared_pool().parallel_for(plan.chunks(), [&](std::int64_t chunk) {
    const Range block = part(m, plan.row_blocks, chunk / plan.panel_groups);
    const Range group = part(plan.panels, plan.panel_groups, chunk % plan.panel_groups);
    const std::int64_t count = block.end - block.begin;
    const std::int64_t tile_count = (count + kernels.tile_rows - 1) / kernels.tile_rows;
    // Interleaved matrices take turns by runs of tiles: hardware prefetchers follow a panel, not two.
    const std::int64_t batch = matrices == 1 ? 1 : kScratchRows / kernels.tile_rows;
    Scratch scratch;
    for (std::int64_t panel = group.begin; panel < group.end; ++panel) {
      for (std::int64_t first = 0; first < tile_count; first += batch) {
        const std::int64_t last = std::min(first + batch, tile_count);
        const std::int64_t begin = part(count, tile_count, first).begin;
        for (int i = 0; i < matrices; ++i) {
          const std::byte* w = weights.panel(panel * matrices + i);
          for (std::int64_t t = first; t < last; ++t) {
            const Range tile = part(count, tile_count, t);
            TileArgs args{.x = rows.data + (block.begin + tile.begin) * rows.stride,
                          .x_stride = rows.stride,
                          .panel = w,
                          .depth = weights.depth(),
                          .out = scratch.sums[i] + (tile.begin - begin) * kPanel,
                          .prefetch = nullptr,
                          .prefetch_steps = 0,
                          .prefetch_lines = 0};
            plan_prefetch(args, weights.panel_bytes(), tile_count, t);
            tiles[tile.end - tile.begin - 1](args);
          }
        }
        const std::int64_t end = part(count, tile_count, last - 1).end;
        finish(scratch.sums, block.begin + begin, static_cast<int>(end - begin), panel);
      }
    }
  });
}

AlignedBuffer copy_of(const float* values, std::int64_t count) {
  if (values == nullptr) return {};
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  AlignedBuffer copy(bytes);
  std::memcpy(copy.data(), values, bytes);
  return copy;
}

const float* at(const AlignedBuffer& values, std::int64_t index) {
  return values.size() == 0 ? nullptr : values.as<float>() + index;
}

int columns_of(const PackedWeights& weights, std::int64_t panel) {
  return static_cast<int>(std::min<std::int64_t>(kPanel, weights.n() - panel * kPanel));
}

}  // namespace

PackedLinear::PackedLinear(std::span<const WeightBlock> blocks, std::int64_t k, DType dtype, DType compute,
                           const float* bias)
    : kernels_(AIRI_SELECT_KERNELS(kLinearKernels, active_isa())),
      weights_(blocks, k, dtype, compute, false),
      bias_(copy_of(bias, weights_.n())) {}

void PackedLinear::forward(const void* x, std::int64_t m, float* out, std::int64_t out_stride) const {
  run(x, m, out, out_stride, false);
}

void PackedLinear::forward_add(const void* x, std::int64_t m, float* out, std::int64_t out_stride) const {
  run(x, m, out, out_stride, true);
}

void PackedLinear::run(const void* x, std::int64_t m, float* out, std::int64_t out_stride, bool add) const {
  const auto finish = add ? kernels_.add : kernels_.store;
  multiply(kernels_, weights_, 1, x, m,
           [&](const auto& sums, std::int64_t row, int rows, std::int64_t panel) {
             const std::int64_t column = panel * kPanel;
             finish(sums[0], rows, columns_of(weights_, panel), at(bias_, column),
                    out + row * out_stride + column, out_stride);
           });
}

PackedGlu::PackedGlu(const void* gate, const void* up, std::int64_t n, std::int64_t k, DType dtype,
                     DType compute, Activation activation, const float* gate_bias, const float* up_bias)
    : kernels_(AIRI_SELECT_KERNELS(kLinearKernels, active_isa())),
      weights_(std::array{WeightBlock{gate, n}, WeightBlock{up, n}}, k, dtype, compute, true),
      activation_(activation),
      gate_bias_(copy_of(gate_bias, n)),
      up_bias_(copy_of(up_bias, n)) {}

void PackedGlu::forward(const void* x, std::int64_t m, void* out) const {
  const auto finish = weights_.compute() == DType::kF32 ? kernels_.glu_f32 : kernels_.glu_bf16;
  const std::int64_t n = weights_.n();
  const auto element = static_cast<std::int64_t>(size_of(weights_.compute()));
  multiply(kernels_, weights_, 2, x, m,
           [&](const auto& sums, std::int64_t row, int rows, std::int64_t panel) {
             const std::int64_t column = panel * kPanel;
             finish(activation_, sums[0], sums[1], rows, columns_of(weights_, panel), at(gate_bias_, column),
                    at(up_bias_, column), static_cast<std::byte*>(out) + (row * n + column) * element, n);
           });
}

}  // namespace airi::cpu
