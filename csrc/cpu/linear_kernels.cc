#include "cpu/linear_kernels.h"

#include <algorithm>

#include "cpu/vec.h"

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kLanes = VecF::kLanes;
constexpr int kPanelVectors = kPanel / kLanes;

// Floats times floats: depth counts k.
struct Plain {
  using X = float;
  static constexpr int kXPerStep = 1;
  using Weight = float;

  template <int R, int V>
  AIRI_INLINE static void step(const X* const (&x)[R], std::int64_t d, const Weight* w, VecF (&acc)[R][V]) {
    VecF b[V];
    for (int v = 0; v < V; ++v) b[v] = VecF::load(w + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const VecF a = VecF::set1(x[r][d]);
      for (int v = 0; v < V; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
};

// Floats times pairs of bfloat16 that are widened on the fly: depth counts pairs.
struct Widening {
  using X = float;
  static constexpr int kXPerStep = 2;
  using Weight = std::uint32_t;

  template <int R, int V>
  AIRI_INLINE static void step(const X* const (&x)[R], std::int64_t d, const Weight* w, VecF (&acc)[R][V]) {
    VecF b[V];
    for (int v = 0; v < V; ++v) b[v] = VecF::even_bf16(w + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const VecF a = VecF::set1(x[r][2 * d]);
      for (int v = 0; v < V; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
    for (int v = 0; v < V; ++v) b[v] = VecF::odd_bf16(w + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const VecF a = VecF::set1(x[r][2 * d + 1]);
      for (int v = 0; v < V; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
};

#ifdef __AVX512BF16__
// Pairs times pairs: depth counts pairs.
struct Paired {
  using X = std::uint32_t;
  static constexpr int kXPerStep = 1;
  using Weight = std::uint32_t;

  template <int R, int V>
  AIRI_INLINE static void step(const X* const (&x)[R], std::int64_t d, const Weight* w, VecF (&acc)[R][V]) {
    __m512bh b[V];
    for (int v = 0; v < V; ++v) b[v] = reinterpret_cast<__m512bh>(_mm512_load_si512(w + v * kLanes));
    for (int r = 0; r < R; ++r) {
      const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(x[r][d])));
      for (int v = 0; v < V; ++v) acc[r][v].v = _mm512_dpbf16_ps(acc[r][v].v, a, b[v]);
    }
  }
};
#endif

// What one sweep brings into L2: `lines` at each of its first `times` steps, or pairs of steps.
struct Prefetch {
  const std::byte* from = nullptr;
  std::int64_t times = 0;
  std::int64_t lines = 0;
  bool per_pair = false;

  AIRI_INLINE void next() {
    for (std::int64_t i = 0; i < lines; ++i, from += 64) __builtin_prefetch(from, 0, 2);
  }
};

// R rows x V vectors from vector `first` of the panel on.
template <class Mode, int R, int V>
AIRI_INLINE void tile_part(const TileArgs& args, int first, Prefetch prefetch) {
  using X = typename Mode::X;
  using Weight = typename Mode::Weight;
  const X* x[R];
  for (int r = 0; r < R; ++r) {
    x[r] = reinterpret_cast<const X*>(static_cast<const std::byte*>(args.x) + r * args.x_stride);
  }
  const Weight* w = static_cast<const Weight*>(args.panel) + first * kLanes;
  VecF acc[R][V];
  for (int r = 0; r < R; ++r) {
    const float* out = args.out + r * kPanel + first * kLanes;
    for (int v = 0; v < V; ++v) acc[r][v] = args.accumulate ? VecF::load(out + v * kLanes) : VecF::zero();
  }
  std::int64_t d = 0;
  if (prefetch.per_pair) {
    for (const std::int64_t end = 2 * prefetch.times; d < end; d += 2, w += 2 * kPanel) {
      prefetch.next();
      Mode::template step<R, V>(x, d, w, acc);
      Mode::template step<R, V>(x, d + 1, w + kPanel, acc);
    }
  } else {
    for (; d < prefetch.times; ++d, w += kPanel) {
      prefetch.next();
      Mode::template step<R, V>(x, d, w, acc);
    }
  }
  for (; d < args.depth; ++d, w += kPanel) Mode::template step<R, V>(x, d, w, acc);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v].store(args.out + r * kPanel + (first + v) * kLanes);
  }
}

// How many vectors of a panel R rows take at a time, so that accumulators, weights and
// one broadcast fit the registers.
template <int R>
constexpr int vectors_at_a_time() {
  for (int v = kPanelVectors; v > 1; --v) {
    if (kPanelVectors % v == 0 && R * v + v + 1 <= VecF::kRegisters) return v;
  }
  return 1;
}

template <int R>
constexpr int kSweepsOf = kPanelVectors / vectors_at_a_time<R>();

constexpr int kSweeps[kMaxTileRows] = {kSweepsOf<1>, kSweepsOf<2>, kSweepsOf<3>, kSweepsOf<4>,
                                       kSweepsOf<5>, kSweepsOf<6>, kSweepsOf<7>, kSweepsOf<8>};

// The part of sweep `sweep` of so many.
AIRI_INLINE Prefetch prefetch_of(const TileArgs& args, int sweep, int sweeps) {
  constexpr std::int64_t kLinesPerStep = kPanel * 4 / 64;
  if (args.stream_bytes > 0 && sweep == 0) {
    return {static_cast<const std::byte*>(args.panel) + args.stream_bytes, args.depth, kLinesPerStep};
  }
  const int streaming = args.stream_bytes > 0 ? 1 : 0;
  const std::int64_t share = args.next_lines / (sweeps - streaming);
  const std::int64_t lines = std::max<std::int64_t>(1, (share + args.depth - 1) / args.depth);
  const std::int64_t times = share / lines;
  return {args.next + (sweep - streaming) * share * 64, times, lines, 2 * times <= args.depth};
}

template <class Mode, int R>
void tile(const TileArgs& args) {
  constexpr int kVectors = vectors_at_a_time<R>();
  for (int sweep = 0; sweep < kSweepsOf<R>; ++sweep) {
    tile_part<Mode, R, kVectors>(args, sweep * kVectors, prefetch_of(args, sweep, kSweepsOf<R>));
  }
}

template <class Mode>
constexpr TileFn kTiles[kMaxTileRows] = {tile<Mode, 1>, tile<Mode, 2>, tile<Mode, 3>, tile<Mode, 4>,
                                         tile<Mode, 5>, tile<Mode, 6>, tile<Mode, 7>, tile<Mode, 8>};

// Calls body(column, count) for whole vectors and then for what is left of `columns`.
template <class Body>
AIRI_INLINE void for_each_vector(int columns, Body body) {
  int c = 0;
  for (; c + kLanes <= columns; c += kLanes) body(c, kLanes);
  if (c < columns) body(c, columns - c);
}

AIRI_INLINE VecF load_some(const float* p, int count) {
  return count == kLanes ? VecF::load(p) : VecF::load_partial(p, count);
}

AIRI_INLINE void store_some(VecF x, float* p, int count) {
  count == kLanes ? x.store(p) : x.store_partial(p, count);
}

AIRI_INLINE void store_some(VecF x, std::uint16_t* p, int count) {
  count == kLanes ? x.store_bf16(p) : x.store_bf16_partial(p, count);
}

template <bool kAdd>
void store_tile(const float* tile, int rows, int columns, const float* bias, float* out,
                std::ptrdiff_t out_stride) {
  for (int r = 0; r < rows; ++r, tile += kPanel, out += out_stride) {
    for_each_vector(columns, [&](int c, int count) {
      VecF x = VecF::load(tile + c);
      if (bias != nullptr) x = x + load_some(bias + c, count);
      if constexpr (kAdd) x = load_some(out + c, count) + x;
      store_some(x, out + c, count);
    });
  }
}

AIRI_INLINE VecF activate(Activation activation, VecF x) {
  const VecF one = VecF::set1(1.0F);
  if (activation == Activation::kSilu) return x / (one + exp(VecF::zero() - x));
  // x / 2 (1 + tanh(u)) = x / (1 + e^(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)
  const VecF cubic = fma(x * x * x, VecF::set1(0.044715F), x);
  return x / (one + exp(cubic * VecF::set1(-1.59576912160573071F)));
}

template <class Out>
void glu(Activation activation, const float* gate, const float* up, int rows, int columns,
         const float* gate_bias, const float* up_bias, void* out, std::ptrdiff_t out_stride) {
  Out* row = static_cast<Out*>(out);
  for (int r = 0; r < rows; ++r, gate += kPanel, up += kPanel, row += out_stride) {
    for_each_vector(columns, [&](int c, int count) {
      VecF g = VecF::load(gate + c);
      VecF u = VecF::load(up + c);
      if (gate_bias != nullptr) g = g + load_some(gate_bias + c, count);
      if (up_bias != nullptr) u = u + load_some(up_bias + c, count);
      store_some(activate(activation, g) * u, row + c, count);
    });
  }
}

// More rows than these would spill accumulators without making use of a loaded weight.
constexpr int kTileRows = VecF::kRegisters == 32 ? 8 : VecF::kLanes == 8 ? 6 : 4;

}  // namespace

extern const LinearKernels kLinearKernels;
const LinearKernels kLinearKernels = {
    .plain = kTiles<Plain>,
    .widening = kTiles<Widening>,
#ifdef __AVX512BF16__
    .paired = kTiles<Paired>,
#else
    .paired = nullptr,
#endif
    .tile_rows = kTileRows,
    .sweeps = kSweeps,
    .store = store_tile<false>,
    .add = store_tile<true>,
    .glu_f32 = glu<float>,
    .glu_bf16 = glu<std::uint16_t>,
};

}  // namespace airi::cpu::AIRI_ISA
