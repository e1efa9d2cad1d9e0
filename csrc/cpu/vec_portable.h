#pragma once

#include "cpu/bf16.h"

namespace airi::cpu::AIRI_ISA {

struct VecF {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;
  typedef float Floats __attribute__((vector_size(16)));
  typedef std::uint32_t Bits __attribute__((vector_size(16)));
  typedef std::int32_t Ints __attribute__((vector_size(16)));
  Floats v;

  AIRI_INLINE static VecF zero() { return {Floats{0, 0, 0, 0}}; }
  AIRI_INLINE static VecF set1(float x) { return {Floats{x, x, x, x}}; }
  AIRI_INLINE static VecF load(const float* p) {
    Floats x;
    __builtin_memcpy(&x, p, sizeof x);
    return {x};
  }
  // The other lanes become 0 and are not touched in memory. 0 <= count <= kLanes.
  AIRI_INLINE static VecF load_partial(const float* p, int count) {
    VecF x = zero();
    // The analyser cannot see that callers fill what they load.
    for (int i = 0; i < count; ++i) x.v[i] = p[i];  // NOLINT(clang-analyzer-core.uninitialized.Assign)
    return x;
  }
  AIRI_INLINE static VecF load_bf16(const std::uint16_t* p) {
    const Bits wide{p[0], p[1], p[2], p[3]};
    return {(Floats)(wide << 16)};
  }
  AIRI_INLINE static VecF load_bf16_partial(const std::uint16_t* p, int count) {
    VecF x = zero();
    for (int i = 0; i < count; ++i) x.v[i] = bf16_to_float(p[i]);
    return x;
  }
  // The lower (even) and upper (odd) halves of 32-bit pairs of bfloat16.
  AIRI_INLINE static VecF even_bf16(const std::uint32_t* p) { return {(Floats)(load_bits(p) << 16)}; }
  AIRI_INLINE static VecF odd_bf16(const std::uint32_t* p) { return {(Floats)(load_bits(p) & 0xffff0000U)}; }

  AIRI_INLINE void store(float* p) const { __builtin_memcpy(p, &v, sizeof v); }
  AIRI_INLINE void store_partial(float* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = v[i];
  }
  // Rounds to nearest even.
  AIRI_INLINE void store_bf16(std::uint16_t* p) const { store_bf16_partial(p, kLanes); }
  AIRI_INLINE void store_bf16_partial(std::uint16_t* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = float_to_bf16(v[i]);
  }

 private:
  AIRI_INLINE static Bits load_bits(const std::uint32_t* p) {
    Bits x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
};

AIRI_INLINE VecF operator+(VecF a, VecF b) { return {a.v + b.v}; }
AIRI_INLINE VecF operator-(VecF a, VecF b) { return {a.v - b.v}; }
AIRI_INLINE VecF operator*(VecF a, VecF b) { return {a.v * b.v}; }
AIRI_INLINE VecF operator/(VecF a, VecF b) { return {a.v / b.v}; }
// a * b + c; one rounding where the target has the instruction, else two.
AIRI_INLINE VecF fma(VecF a, VecF b, VecF c) {
#ifdef __FP_FAST_FMAF
  VecF x;
  for (int i = 0; i < VecF::kLanes; ++i) x.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return x;
#else
  return {a.v * b.v + c.v};
#endif
}
// a < b ? yes : no
AIRI_INLINE VecF select_below(VecF a, VecF b, VecF yes, VecF no) {
  const VecF::Ints mask = a.v < b.v;
  return {(VecF::Floats)((mask & (VecF::Ints)yes.v) | (~mask & (VecF::Ints)no.v))};
}
// When either is NaN: b.
AIRI_INLINE VecF max(VecF a, VecF b) { return select_below(b, a, a, b); }
AIRI_INLINE VecF min(VecF a, VecF b) { return select_below(a, b, a, b); }
AIRI_INLINE VecF sqrt(VecF a) {
  VecF x;
  for (int i = 0; i < VecF::kLanes; ++i) x.v[i] = __builtin_sqrtf(a.v[i]);
  return x;
}
// To the nearest integer, ties to even. REQUIRES |a| < 2^22.
AIRI_INLINE VecF round(VecF a) {
  const VecF shift = VecF::set1(12582912.0F);  // 1.5 * 2^23: the fraction is rounded away
  return (a + shift) - shift;
}
// x * 2^n for an integral n in [-200, 200], with underflow to 0 and overflow to infinity.
AIRI_INLINE VecF scale_by_power_of_two(VecF x, VecF n) {
  // In two halves: 2^n alone may lie outside of the normal floats. A NaN (where the
  // conversion to integer is undefined) is replaced; x is NaN then, too.
  const VecF::Ints known = n.v == n.v;
  const VecF::Ints whole = __builtin_convertvector((VecF::Floats)(known & (VecF::Ints)n.v), VecF::Ints);
  const VecF::Ints half = whole >> 1;
  const VecF::Ints rest = whole - half;
  return {x.v * (VecF::Floats)((half + 127) << 23) * (VecF::Floats)((rest + 127) << 23)};
}

// Both in a fixed order: halves are folded onto each other.
AIRI_INLINE float reduce_add(VecF a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
AIRI_INLINE float reduce_max(VecF a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2];
  const float y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}

}  // namespace airi::cpu::AIRI_ISA
