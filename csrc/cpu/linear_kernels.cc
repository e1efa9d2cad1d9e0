#include "cpu/linear_kernels.h"

#include <algorithm>

#include "cpu/vec.h"

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kLanes = VecF::kLanes;
constexpr int kPanelVectors = kPanel / kLanes;

// Where vectors of a panel lie at some depth: whole strips of them, or some within one.
template <class Weight>
class Columns {
 public:
  // From vector `first` on, of a block whose strips have `depth` rows.
  AIRI_INLINE Columns(const void* panel, std::int64_t depth, int first)
      : strip_(depth * kStrip),
        from_(static_cast<const Weight*>(panel) + first * kLanes / kStrip * strip_ +
              first * kLanes % kStrip) {}

  [[nodiscard]] AIRI_INLINE const Weight* at(int v) const {
    return from_ + v * kLanes / kStrip * strip_ + v * kLanes % kStrip;
  }
  AIRI_INLINE void advance() { from_ += kStrip; }

 private:
  std::ptrdiff_t strip_;
  const Weight* from_;
};

// Floats times floats: depth counts k.
struct Plain {
  using X = float;
  static constexpr int kKept = 0;
  using Weight = float;

  template <int R, int V>
  AIRI_INLINE static void step(const X* const (&x)[R], std::int64_t d, const Columns<Weight>& w,
                               VecF (&acc)[R][V]) {
    VecF b[V];
    for (int v = 0; v < V; ++v) b[v] = VecF::load(w.at(v));
    for (int r = 0; r < R; ++r) {
      const VecF a = VecF::set1(x[r][d]);
      for (int v = 0; v < V; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
};

// Floats times pairs of bfloat16 that are widened on the fly: depth counts pairs.
struct Widening {
  using X = float;
  static constexpr int kKept = 1;  // the mask of odd weights
  using Weight = std::uint32_t;

  template <int R, int V>
  AIRI_INLINE static void step(const X* const (&x)[R], std::int64_t d, const Columns<Weight>& w,
                               VecF (&acc)[R][V]) {
    VecF b[V];
    for (int v = 0; v < V; ++v) b[v] = VecF::even_bf16(w.at(v));
    for (int r = 0; r < R; ++r) {
      const VecF a = VecF::set1(x[r][2 * d]);
      for (int v = 0; v < V; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
    for (int v = 0; v < V; ++v) b[v] = VecF::odd_bf16(w.at(v));
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
  static constexpr int kKept = 0;
  using Weight = std::uint32_t;

  template <int R, int V>
  AIRI_INLINE static void step(const X* const (&x)[R], std::int64_t d, const Columns<Weight>& w,
                               VecF (&acc)[R][V]) {
    __m512bh b[V];
    for (int v = 0; v < V; ++v) b[v] = reinterpret_cast<__m512bh>(_mm512_load_si512(w.at(v)));
    for (int r = 0; r < R; ++r) {
      const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(x[r][d])));
      for (int v = 0; v < V; ++v) acc[r][v].v = _mm512_dpbf16_ps(acc[r][v].v, a, b[v]);
    }
  }
};
#endif

AIRI_INLINE std::ptrdiff_t strip_bytes(const TileArgs& args) { return args.depth * kStrip * 4; }

// What one sweep brings into L2: at each of its first `times` steps, or pairs of steps, so many
// lines that lie `apart`.
struct Prefetch {
  const std::byte* from;
  std::int64_t times;
  std::int64_t lines;
  std::ptrdiff_t apart;
  std::ptrdiff_t advance;
  bool per_pair;

  AIRI_INLINE void next() {
    for (std::int64_t i = 0; i < lines; ++i) __builtin_prefetch(from + i * apart, 0, 2);
    from += advance;
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
  Columns<Weight> w(args.panel, args.depth, first);
  VecF acc[R][V];
  for (int r = 0; r < R; ++r) {
    const float* out = args.out + r * kPanel + first * kLanes;
    for (int v = 0; v < V; ++v) acc[r][v] = args.accumulate ? VecF::load(out + v * kLanes) : VecF::zero();
  }
  const auto step = [&](std::int64_t d) {
    Mode::template step<R, V>(x, d, w, acc);
    w.advance();
  };
  std::int64_t d = 0;
  if (prefetch.per_pair) {
    for (const std::int64_t end = 2 * prefetch.times; d < end; d += 2) {
      prefetch.next();
      step(d);
      step(d + 1);
    }
  } else {
    for (; d < prefetch.times; ++d) {
      prefetch.next();
      step(d);
    }
  }
  for (; d < args.depth; ++d) step(d);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v].store(args.out + r * kPanel + (first + v) * kLanes);
  }
}

// How many vectors of a panel R rows take at a time, so that accumulators, weights, one
// broadcast and what the mode keeps fit the registers: whole strips, or equal parts of one.
template <class Mode, int R>
constexpr int vectors_at_a_time() {
  constexpr int kOfStrip = kStrip / kLanes;
  for (int v = kPanelVectors; v > 1; --v) {
    const bool divides = v % kOfStrip == 0 ? kPanelVectors % v == 0 : kOfStrip % v == 0;
    if (divides && R * v + v + 1 + Mode::kKept <= VecF::kRegisters) return v;
  }
  return 1;
}

// The part of the sweep over `vectors` vectors from vector `first` on.
AIRI_INLINE Prefetch prefetch_of(const TileArgs& args, int first, int vectors) {
  if (args.stream_bytes > 0) {
    const int strip = first * kLanes / kStrip;
    const int end = ((first + vectors) * kLanes + kStrip - 1) / kStrip;
    const auto* from = static_cast<const std::byte*>(args.panel) + strip * strip_bytes(args);
    return {from + args.stream_bytes, args.depth, end - strip, strip_bytes(args), 64, false};
  }
  const std::int64_t share = args.next_lines * vectors / kPanelVectors;
  const std::int64_t lines = std::max<std::int64_t>(1, (share + args.depth - 1) / args.depth);
  const std::int64_t times = share / lines;
  return {args.next + first / vectors * share * 64, times, lines, 64, lines * 64, 2 * times <= args.depth};
}

template <class Mode, int R>
void tile(const TileArgs& args) {
  constexpr int kVectors = vectors_at_a_time<Mode, R>();
  for (int first = 0; first < kPanelVectors; first += kVectors) {
    tile_part<Mode, R, kVectors>(args, first, prefetch_of(args, first, kVectors));
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
    .store = store_tile<false>,
    .add = store_tile<true>,
    .glu_f32 = glu<float>,
    .glu_bf16 = glu<std::uint16_t>,
};

}  // namespace airi::cpu::AIRI_ISA
