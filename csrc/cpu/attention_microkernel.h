#pragma once

#include "cpu/vec.h"

// C[rows, columns] = A[rows, k] B[k, columns] (or +=) in registers, for attention's two
// products. Every element of C is one chain of multiply-adds over k in ascending order,
// so that it does not depend on how rows and columns are cut into tiles.

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kTileM = 6;
constexpr int kTileN = VecF::kRegisters == 32 ? 4 : 2;

// One float of A times a vector of B.
struct FloatStep {
  AIRI_INLINE static VecF run(VecF a, VecF b, VecF c) { return fma(a, b, c); }
};

#ifdef __AVX512BF16__
// A word is a pair of bfloat16: two products are added to each lane.
struct PairStep {
  AIRI_INLINE static VecF run(VecF a, VecF b, VecF c) {
    return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};
#endif

// Strides in words. A pair of bfloat16 travels as the float with its bits.
struct Product {
  const float* a;
  std::int64_t lda;
  const float* b;
  std::int64_t ldb;
  float* c;
  std::int64_t ldc;
  int k;
  bool accumulate;
};

template <class Step, int M, int N>
void multiply_tile(const Product& p) {
  VecF sum[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      sum[m][n] = p.accumulate ? VecF::load(p.c + m * p.ldc + n * VecF::kLanes) : VecF::zero();
    }
  }
  const float* a = p.a;
  const float* b = p.b;
  for (int k = 0; k < p.k; ++k, ++a, b += p.ldb) {
    VecF row[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) row[n] = VecF::load(b + n * VecF::kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const VecF x = VecF::set1(a[m * p.lda]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[m][n] = Step::run(x, row[n], sum[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) sum[m][n].store(p.c + m * p.ldc + n * VecF::kLanes);
  }
}

template <class Step, int M>
AIRI_INLINE void multiply_columns(Product p, int vectors) {
  for (; vectors >= kTileN; vectors -= kTileN) {
    multiply_tile<Step, M, kTileN>(p);
    p.b += kTileN * VecF::kLanes;
    p.c += kTileN * VecF::kLanes;
  }
  if constexpr (kTileN == 4) {
    if (vectors == 3) multiply_tile<Step, M, 3>(p);
    if (vectors == 2) multiply_tile<Step, M, 2>(p);
  }
  if (vectors == 1) multiply_tile<Step, M, 1>(p);
}

// REQUIRES 1 <= rows <= kTileM.
template <class Step>
AIRI_INLINE void multiply(const Product& p, int rows, int vectors) {
  switch (rows) {
    case 1:
      return multiply_columns<Step, 1>(p, vectors);
    case 2:
      return multiply_columns<Step, 2>(p, vectors);
    case 3:
      return multiply_columns<Step, 3>(p, vectors);
    case 4:
      return multiply_columns<Step, 4>(p, vectors);
    case 5:
      return multiply_columns<Step, 5>(p, vectors);
    default:
      return multiply_columns<Step, 6>(p, vectors);
  }
}

}  // namespace
}  // namespace airi::cpu::AIRI_ISA
