#pragma once

#include "cpu/attention_keys.h"
#include "cpu/vec.h"

// Softmax of one query row over the keys of one split, in place and not normalised.

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// Scores of one row within a split. The row sees keys [own_begin, own_end), which may be
// empty; its tile's product with the values reads all of [begin, end), multiples of kLanes.
struct ScoreRow {
  float* x;
  int begin;
  int own_begin;
  int own_end;
  int end;
};

struct RowSum {
  float greatest;  // minus infinity when the row sees no key
  float sum;
};

// Sets what lies beside the row's own keys in their outermost vectors to minus infinity.
AIRI_INLINE void mask_edges(const ScoreRow& row, int first, int last) {
  float ids[VecF::kLanes];
  for (int i = 0; i < VecF::kLanes; ++i) ids[i] = static_cast<float>(i);
  const VecF lanes = VecF::load(ids);
  const VecF hidden = VecF::set1(-kInfinity);
  if (first < row.own_begin) {
    const VecF count = VecF::set1(static_cast<float>(row.own_begin - first));
    select_below(lanes, count, hidden, VecF::load(row.x + first)).store(row.x + first);
  }
  if (row.own_end < last) {
    float* edge = row.x + last - VecF::kLanes;
    const VecF count = VecF::set1(static_cast<float>(row.own_end - (last - VecF::kLanes)));
    select_below(lanes, count, VecF::load(edge), hidden).store(edge);
  }
}

// Scales and caps n scores; returns the greatest of each lane.
AIRI_INLINE VecF scale_scores(float* x, int n, float scale, float softcap) {
  const VecF factor = VecF::set1(softcap > 0 ? scale / softcap : scale);
  const VecF cap = VecF::set1(softcap);
  VecF greatest = VecF::set1(-kInfinity);
  for (int i = 0; i < n; i += VecF::kLanes) {
    const VecF raw = VecF::load(x + i);
    VecF y = raw * factor;
    if (softcap > 0) {
      // A masked score stays minus infinity: the cap must not bring it back.
      y = select_below(VecF::set1(-kInfinity), raw, tanh(y) * cap, raw);
    }
    y.store(x + i);
    greatest = max(greatest, y);
  }
  return greatest;
}

AIRI_INLINE RowSum softmax_floats(float* x, int n, float scale, float softcap) {
  const float greatest = reduce_max(scale_scores(x, n, scale, softcap));
  VecF sum = VecF::zero();
  for (int i = 0; i < n; i += VecF::kLanes) {
    const VecF p = exp(VecF::load(x + i) - VecF::set1(greatest));
    p.store(x + i);
    sum = sum + p;
  }
  return {greatest, reduce_add(sum)};
}

#ifdef __AVX512BF16__
// 2^x for x <= 0 to 3e-6, far below what a bfloat16 keeps; 0 below -149; NaN stays NaN.
AIRI_INLINE __m512 exp2_roughly(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0F), x);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.3333558e-3F);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3F));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2F));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1F));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1F));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0F));
  return _mm512_scalef_ps(p, n);
}

// As softmax_floats, but leaves bfloat16 probabilities, each at half of its score's offset
// from `x`; `first` is that of the n scores.
AIRI_INLINE RowSum softmax_pairs(float* x, int first, int n, float scale, float softcap) {
  const float* scores = x + first;
  auto* out = reinterpret_cast<std::uint16_t*>(x) + first;
  VecF top = VecF::set1(-kInfinity);
  if (softcap > 0) {
    top = scale_scores(x + first, n, scale, softcap);
    scale = 1;
  } else {
    for (int i = 0; i < n; i += 16) top = max(top, VecF::load(scores + i));
  }
  const float greatest = reduce_max(top) * scale;
  constexpr float kLog2E = 1.44269504F;
  const __m512 factor = _mm512_set1_ps(scale * kLog2E);
  const __m512 shift = _mm512_set1_ps(-greatest * kLog2E);
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __m512 p = exp2_roughly(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i), factor, shift));
    sum = _mm512_add_ps(sum, p);
    const auto half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(p));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), half);
  }
  return {greatest, reduce_add(VecF{sum})};
}
#endif

// Leaves probabilities relative to the greatest score, zero for keys that the row does not
// see: floats, or with kPaired bfloat16 at half of the floats' offsets.
template <bool kPaired>
AIRI_INLINE RowSum softmax_row(const ScoreRow& row, float scale, float softcap) {
  constexpr int kLanes = VecF::kLanes;
  const bool any = row.own_begin < row.own_end;
  const int first = any ? round_down(row.own_begin, kLanes) : row.end;
  const int last = any ? round_up(row.own_end, kLanes) : row.end;
  RowSum result{-kInfinity, 0};
  if (any) mask_edges(row, first, last);
#ifdef __AVX512BF16__
  if constexpr (kPaired) {
    if (any) result = softmax_pairs(row.x, first, last - first, scale, softcap);
    auto* out = reinterpret_cast<std::uint16_t*>(row.x);
    for (int i = row.begin; i < first; i += kLanes) VecF::zero().store_bf16(out + i);
    for (int i = last; i < row.end; i += kLanes) VecF::zero().store_bf16(out + i);
    return result;
  }
#endif
  if (any) result = softmax_floats(row.x + first, last - first, scale, softcap);
  for (int i = row.begin; i < first; i += kLanes) VecF::zero().store(row.x + i);
  for (int i = last; i < row.end; i += kLanes) VecF::zero().store(row.x + i);
  return result;
}

}  // namespace
}  // namespace airi::cpu::AIRI_ISA
