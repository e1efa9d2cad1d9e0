#pragma once

#include <immintrin.h>

namespace airi::cpu::AIRI_ISA {

AIRI_INLINE __mmask16 lane_mask(int count) { return static_cast<__mmask16>((1U << count) - 1U); }

struct VecF {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  __m512 v;

  AIRI_INLINE static VecF zero() { return {_mm512_setzero_ps()}; }
  AIRI_INLINE static VecF set1(float x) { return {_mm512_set1_ps(x)}; }
  AIRI_INLINE static VecF load(const float* p) { return {_mm512_loadu_ps(p)}; }
  // The other lanes become 0 and are not touched in memory. 0 <= count <= kLanes.
  AIRI_INLINE static VecF load_partial(const float* p, int count) {
    return {_mm512_maskz_loadu_ps(lane_mask(count), p)};
  }
  AIRI_INLINE static VecF load_bf16(const std::uint16_t* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  AIRI_INLINE static VecF load_bf16_partial(const std::uint16_t* p, int count) {
    return widen(_mm256_maskz_loadu_epi16(lane_mask(count), p));
  }
  // The lower (even) and upper (odd) halves of 32-bit pairs of bfloat16.
  AIRI_INLINE static VecF even_bf16(const std::uint32_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
  }
  AIRI_INLINE static VecF odd_bf16(const std::uint32_t* p) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)))};
  }

  AIRI_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  AIRI_INLINE void store_partial(float* p, int count) const { _mm512_mask_storeu_ps(p, lane_mask(count), v); }
  // Rounds to nearest even.
  AIRI_INLINE void store_bf16(std::uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v));
  }
  AIRI_INLINE void store_bf16_partial(std::uint16_t* p, int count) const {
    _mm256_mask_storeu_epi16(p, lane_mask(count), narrow(v));
  }

 private:
  AIRI_INLINE static VecF widen(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  AIRI_INLINE static __m256i narrow(__m512 x) {
#ifdef __AVX512BF16__
    // The instruction flushes denormals, which bfloat16 has like float: keep them.
    const __mmask16 plain = _mm512_fpclass_ps_mask(x, 0x20) ^ 0xffff;
    if (plain == 0xffff) return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#endif
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
};

AIRI_INLINE VecF operator+(VecF a, VecF b) { return {_mm512_add_ps(a.v, b.v)}; }
AIRI_INLINE VecF operator-(VecF a, VecF b) { return {_mm512_sub_ps(a.v, b.v)}; }
AIRI_INLINE VecF operator*(VecF a, VecF b) { return {_mm512_mul_ps(a.v, b.v)}; }
AIRI_INLINE VecF operator/(VecF a, VecF b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c
AIRI_INLINE VecF fma(VecF a, VecF b, VecF c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// When either is NaN: b.
AIRI_INLINE VecF max(VecF a, VecF b) { return {_mm512_max_ps(a.v, b.v)}; }
AIRI_INLINE VecF min(VecF a, VecF b) { return {_mm512_min_ps(a.v, b.v)}; }
AIRI_INLINE VecF sqrt(VecF a) { return {_mm512_sqrt_ps(a.v)}; }
AIRI_INLINE VecF round(VecF a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^n for an integral n, with underflow to 0 and overflow to infinity.
AIRI_INLINE VecF scale_by_power_of_two(VecF x, VecF n) { return {_mm512_scalef_ps(x.v, n.v)}; }
// a < b ? yes : no
AIRI_INLINE VecF select_below(VecF a, VecF b, VecF yes, VecF no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}

// Both in a fixed order: halves are folded onto each other.
AIRI_INLINE float reduce_add(VecF a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
AIRI_INLINE float reduce_max(VecF a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

}  // namespace airi::cpu::AIRI_ISA
