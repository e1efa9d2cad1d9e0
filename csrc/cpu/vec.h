#pragma once

// VecF: a vector register of floats for kernel sources that are compiled once per
// instruction set (see cpu/isa.h). Everything lives in the namespace AIRI_ISA and is
// always inlined. Lane counts: 16 (AVX-512), 8 (AVX2), 4 (portable: GCC/Clang vectors).
//
// No operation depends on rounding choices of the compiler: kernels are built with
// -ffp-contract=off, and fma() is one rounding wherever the hardware has it.

#include <cstddef>
#include <cstdint>

#ifndef AIRI_ISA
#error "cpu/vec.h is for sources in AIRI_ISA_SOURCES (csrc/cpu/CMakeLists.txt)"
#endif

#define AIRI_INLINE [[gnu::always_inline]] inline

#if defined(__AVX512F__)
#include "cpu/vec_avx512.h"
#elif defined(__AVX2__)
#include "cpu/vec_avx2.h"
#else
#include "cpu/vec_portable.h"
#endif

namespace airi::cpu::AIRI_ISA {

// e^x to about 1 ulp; 0 below the smallest float, infinity above the largest, NaN stays NaN.
AIRI_INLINE VecF exp(VecF x) {
  // Outside of these bounds the result is 0 or infinity anyway. A NaN passes min and max,
  // which return their second operand when either is NaN.
  x = min(VecF::set1(89.0F), max(VecF::set1(-104.0F), x));
  const VecF n = round(x * VecF::set1(1.44269504088896341F));
  // ln 2 in two parts, so that x - n ln 2 loses nothing.
  VecF r = fma(n, VecF::set1(-0.693145751953125F), x);
  r = fma(n, VecF::set1(-1.42860682e-6F), r);
  VecF p = VecF::set1(1.9875691500e-4F);
  p = fma(p, r, VecF::set1(1.3981999507e-3F));
  p = fma(p, r, VecF::set1(8.3334519073e-3F));
  p = fma(p, r, VecF::set1(4.1665795894e-2F));
  p = fma(p, r, VecF::set1(1.6666665459e-1F));
  p = fma(p, r, VecF::set1(5.0000001201e-1F));
  p = fma(p * r, r, r) + VecF::set1(1.0F);
  return scale_by_power_of_two(p, n);
}

// tanh to about 2 ulp everywhere, also near 0.
AIRI_INLINE VecF tanh(VecF x) {
  const VecF one = VecF::set1(1.0F);
  const VecF square = x * x;
  VecF p = VecF::set1(-5.70498872745e-3F);
  p = fma(p, square, VecF::set1(2.06390887954e-2F));
  p = fma(p, square, VecF::set1(-5.37397155531e-2F));
  p = fma(p, square, VecF::set1(1.33314422036e-1F));
  p = fma(p, square, VecF::set1(-3.33332819422e-1F));
  const VecF near = fma(p * square, x, x);
  const VecF far = one - VecF::set1(2.0F) / (one + exp(x + x));
  return select_below(square, VecF::set1(0.390625F), near, far);
}

}  // namespace airi::cpu::AIRI_ISA
