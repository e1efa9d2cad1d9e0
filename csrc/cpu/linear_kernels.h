#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"

namespace airi::cpu {

// Weights are packed into panels of kPanel output columns, the same for every instruction
// set: [panel][block of k][strip][k][column] float, or with pairs of bfloat16 (the even k in
// the lower half) for k. A strip is a cache line wide, so that kernels that take some of a
// panel's columns at a time read memory in its order: 16 columns are 1 AVX-512, 2 AVX2 or 4
// portable vectors.
inline constexpr int kPanel = 48;
inline constexpr int kStrip = 16;
// The most rows that one call of a tile kernel computes.
inline constexpr int kMaxTileRows = 8;

// One tile: `rows` x kPanel sums over all of k, each accumulated in the order of k in one
// register, so that a sum depends on its row of x and its column alone.
struct TileArgs {
  const void* x;            // row 0; float or pairs of bfloat16, as the kernel wants
  std::ptrdiff_t x_stride;  // from row to row, in bytes
  const void* panel;        // or a block of one, aligned to 64 bytes
  std::int64_t depth;       // of the block: k, or k / 2 rounded up for pairs
  bool accumulate;          // go on from the sums in `out` instead of from 0
  float* out;               // [rows][kPanel], aligned to 64 bytes
  // The panel itself is not in L2 yet: what is read runs this many bytes behind what is
  // brought in. 0 where it is.
  std::int64_t stream_bytes;
  // Else: this many cache lines from here on are read next, and brought into L2.
  const std::byte* next;
  std::int64_t next_lines;
};

using TileFn = void (*)(const TileArgs&);

enum class Activation { kSilu, kGeluTanh };

struct LinearKernels {
  // [rows - 1]: x float, weights float / x float, weights bfloat16 pairs / both pairs.
  // `paired` is null where the instruction set cannot multiply pairs.
  const TileFn* plain;
  const TileFn* widening;
  const TileFn* paired;
  int tile_rows;  // the widest of them, <= kMaxTileRows

  // tile [rows][kPanel] (+ bias) -> out[rows][0:columns], `out_stride` floats apart.
  void (*store)(const float* tile, int rows, int columns, const float* bias, float* out,
                std::ptrdiff_t out_stride);
  void (*add)(const float* tile, int rows, int columns, const float* bias, float* out,
              std::ptrdiff_t out_stride);
  // out = activation(gate + gate_bias) * (up + up_bias), as float or bfloat16.
  void (*glu_f32)(Activation activation, const float* gate, const float* up, int rows, int columns,
                  const float* gate_bias, const float* up_bias, void* out, std::ptrdiff_t out_stride);
  void (*glu_bf16)(Activation activation, const float* gate, const float* up, int rows, int columns,
                   const float* gate_bias, const float* up_bias, void* out, std::ptrdiff_t out_stride);
};

AIRI_DECLARE_KERNELS(LinearKernels, kLinearKernels);

}  // namespace airi::cpu
