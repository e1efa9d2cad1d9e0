#pragma once

#include <immintrin.h>

namespace airi::cpu::AIRI_ISA {

// All ones in the first `count` lanes.
AIRI_INLINE __m256i lane_mask(int count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
}

struct VecF {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  __m256 v;

  AIRI_INLINE static VecF zero() { return {_mm256_setzero_ps()}; }
  AIRI_INLINE static VecF set1(float x) { return {_mm256_set1_ps(x)}; }
  AIRI_INLINE static VecF load(const float* p) { return {_mm256_loadu_ps(p)}; }
  // The other lanes become 0 and are not touched in memory. 0 <= count <= kLanes.
  AIRI_INLINE static VecF load_partial(const float* p, int count) {
    return {_mm256_maskload_ps(p, lane_mask(count))};
  }
  AIRI_INLINE static VecF load_bf16(const std::uint16_t* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  AIRI_INLINE static VecF load_bf16_partial(const std::uint16_t* p, int count) {
    alignas(16) std::uint16_t lanes[kLanes] = {};
    for (int i = 0; i < count; ++i) lanes[i] = p[i];
    return load_bf16(lanes);
  }
  // The lower (even) and upper (odd) halves of 32-bit pairs of bfloat16.
  AIRI_INLINE static VecF even_bf16(const std::uint32_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(load_bits(p), 16))};
  }
  AIRI_INLINE static VecF odd_bf16(const std::uint32_t* p) {
    return {_mm256_castsi256_ps(_mm256_and_si256(load_bits(p), _mm256_set1_epi32(-65536)))};
  }

  AIRI_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  AIRI_INLINE void store_partial(float* p, int count) const { _mm256_maskstore_ps(p, lane_mask(count), v); }
  // Rounds to nearest even.
  AIRI_INLINE void store_bf16(std::uint16_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v));
  }
  AIRI_INLINE void store_bf16_partial(std::uint16_t* p, int count) const {
    alignas(16) std::uint16_t lanes[kLanes];
    store_bf16(lanes);
    for (int i = 0; i < count; ++i) p[i] = lanes[i];
  }

 private:
  AIRI_INLINE static __m256i load_bits(const std::uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  AIRI_INLINE static VecF widen(__m128i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  AIRI_INLINE static __m128i narrow(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
};

AIRI_INLINE VecF operator+(VecF a, VecF b) { return {_mm256_add_ps(a.v, b.v)}; }
AIRI_INLINE VecF operator-(VecF a, VecF b) { return {_mm256_sub_ps(a.v, b.v)}; }
AIRI_INLINE VecF operator*(VecF a, VecF b) { return {_mm256_mul_ps(a.v, b.v)}; }
AIRI_INLINE VecF operator/(VecF a, VecF b) { return {_mm256_div_ps(a.v, b.v)}; }
// a * b + c
AIRI_INLINE VecF fma(VecF a, VecF b, VecF c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// When either is NaN: b.
AIRI_INLINE VecF max(VecF a, VecF b) { return {_mm256_max_ps(a.v, b.v)}; }
AIRI_INLINE VecF min(VecF a, VecF b) { return {_mm256_min_ps(a.v, b.v)}; }
AIRI_INLINE VecF sqrt(VecF a) { return {_mm256_sqrt_ps(a.v)}; }
AIRI_INLINE VecF round(VecF a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^n for an integral n in [-200, 200], with underflow to 0 and overflow to infinity.
AIRI_INLINE VecF scale_by_power_of_two(VecF x, VecF n) {
  // In two halves: 2^n alone may lie outside of the normal floats.
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(x.v, first), second)};
}
// a < b ? yes : no
AIRI_INLINE VecF select_below(VecF a, VecF b, VecF yes, VecF no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}

// Both in a fixed order: halves are folded onto each other.
AIRI_INLINE float reduce_add(VecF a) {
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
AIRI_INLINE float reduce_max(VecF a) {
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

}  // namespace airi::cpu::AIRI_ISA
