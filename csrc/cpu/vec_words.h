#pragma once

#include "cpu/vec.h"

// 32-bit words beside VecF, for kernel sources that are compiled once per instruction set:
// the logarithm and the counter-based random numbers of the sampler.

namespace airi::cpu::AIRI_ISA {
namespace {

using Words [[gnu::vector_size(4 * VecF::kLanes)]] = std::uint32_t;
using SignedWords [[gnu::vector_size(4 * VecF::kLanes)]] = std::int32_t;
using LongWords [[gnu::vector_size(4 * VecF::kLanes)]] = std::uint64_t;
using FloatLanes [[gnu::vector_size(4 * VecF::kLanes)]] = float;

AIRI_INLINE Words bits_of(VecF x) { return (Words)x.v; }
AIRI_INLINE VecF float_of_bits(Words x) {
  VecF y;
  __builtin_memcpy(&y.v, &x, sizeof x);
  return y;
}
// Rounds to nearest.
AIRI_INLINE VecF float_of(Words x) {
  const FloatLanes f = __builtin_convertvector(x, FloatLanes);
  VecF y;
  __builtin_memcpy(&y.v, &f, sizeof f);
  return y;
}

// ln x to about 1.5 ulp for normal positive x.
AIRI_INLINE VecF log(VecF x) {
  const Words bits = bits_of(x);
  // x = m 2^e with m in [sqrt(1/2), sqrt(2)), so that the polynomial's argument is near 0.
  const SignedWords e = (SignedWords)(bits - 0x3f3504f3U) >> 23;
  const VecF m = float_of_bits(bits - ((Words)e << 23)) - VecF::set1(1.0F);
  const FloatLanes whole = __builtin_convertvector(e, FloatLanes);
  VecF exponent;
  __builtin_memcpy(&exponent.v, &whole, sizeof whole);
  VecF p = VecF::set1(7.0376836292e-2F);
  p = fma(p, m, VecF::set1(-1.1514610310e-1F));
  p = fma(p, m, VecF::set1(1.1676998740e-1F));
  p = fma(p, m, VecF::set1(-1.2420140846e-1F));
  p = fma(p, m, VecF::set1(1.4249322787e-1F));
  p = fma(p, m, VecF::set1(-1.6668057665e-1F));
  p = fma(p, m, VecF::set1(2.0000714765e-1F));
  p = fma(p, m, VecF::set1(-2.4999993993e-1F));
  p = fma(p, m, VecF::set1(3.3333331174e-1F));
  const VecF square = m * m;
  VecF y = p * m * square;
  y = fma(exponent, VecF::set1(-2.12194440e-4F), y);
  y = fma(square, VecF::set1(-0.5F), y);
  return fma(exponent, VecF::set1(0.693359375F), m + y);
}

// The lower halves' 64-bit product, lane by lane.
AIRI_INLINE LongWords multiply_low_halves(LongWords a, std::uint32_t b) {
#if defined(__AVX512F__)
  return (LongWords)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (LongWords)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#else
  return (a & 0xffffffffU) * std::uint64_t{b};
#endif
}

// Philox4x32-10 (Salmon et al., 2011) under one key.
class Philox {
 public:
  static constexpr int kCounters = VecF::kLanes;  // per call

  explicit Philox(std::uint64_t seed) {
    auto k0 = static_cast<std::uint32_t>(seed);
    auto k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      keys_[round][0] = k0;
      keys_[round][1] = k1;
      k0 += 0x9E3779B9U;
      k1 += 0xBB67AE85U;
    }
  }

  // The words of the counters (first + i, draw, 0, 0) for i in [0, kCounters), four words
  // per counter, in order, in out[0..3].
  AIRI_INLINE void words(std::uint32_t first, std::uint32_t draw, Words* out) const {
    constexpr int kHalf = kCounters / 2;
    LongWords order;  // that the interleaving at the end turns into ascending counters
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) order[i] = static_cast<std::uint32_t>(i % 2 * (kHalf / 2) + i / 2);
    // 64-bit lanes, each holding a word in its lower half and anything above it. Two
    // independent sets, because each round waits for the products of the one before.
    LongWords c0[2] = {order + first, order + (first + kHalf)};
    LongWords c1[2] = {LongWords{} + draw, LongWords{} + draw};
    LongWords c2[2] = {};
    LongWords c3[2] = {};
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s) {
        const LongWords p0 = multiply_low_halves(c0[s], 0xD2511F53U);
        const LongWords p1 = multiply_low_halves(c2[s], 0xCD9E8D57U);
        c0[s] = (p1 >> 32) ^ c1[s] ^ keys_[round][0];
        c2[s] = (p0 >> 32) ^ c3[s] ^ keys_[round][1];
        c1[s] = p1;
        c3[s] = p0;
      }
    }
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      const LongWords low = (c0[s] & 0xffffffffU) | (c1[s] << 32);
      const LongWords high = (c2[s] & 0xffffffffU) | (c3[s] << 32);
      interleave(low, high, out + 2 * s);
    }
  }

 private:
  AIRI_INLINE static void interleave(LongWords low, LongWords high, Words* out) {
#if defined(__AVX512F__)
    out[0] = (Words)_mm512_unpacklo_epi64((__m512i)low, (__m512i)high);
    out[1] = (Words)_mm512_unpackhi_epi64((__m512i)low, (__m512i)high);
#elif defined(__AVX2__)
    out[0] = (Words)_mm256_unpacklo_epi64((__m256i)low, (__m256i)high);
    out[1] = (Words)_mm256_unpackhi_epi64((__m256i)low, (__m256i)high);
#else
    out[0] = (Words)LongWords{low[0], high[0]};
    out[1] = (Words)LongWords{low[1], high[1]};
#endif
  }

  std::uint64_t keys_[10][2];
};

// A uniform word x as u = (x + 1/2) / 2^32, in (0, 1].
AIRI_INLINE VecF uniform(Words x) { return (float_of(x) + VecF::set1(0.5F)) * VecF::set1(0x1p-32F); }

// Standard Gumbel noise -ln(-ln(1 - u)), to float precision but for its least values,
// where 1 - u is rounded: noise that wins nothing. Between -2.9 and 22.88.
AIRI_INLINE VecF gumbel(Words x) {
  const VecF u = uniform(x);
  const VecF rest = max(VecF::set1(1.0F) - u, VecF::set1(0x1p-25F));
  // -ln(1 - u) = u + u^2 / 2 + ... for small u, where ln(rest) would lose digits.
  VecF series = VecF::set1(1.0F / 6.0F);
  series = fma(series, u, VecF::set1(1.0F / 5.0F));
  series = fma(series, u, VecF::set1(1.0F / 4.0F));
  series = fma(series, u, VecF::set1(1.0F / 3.0F));
  series = fma(series, u, VecF::set1(1.0F / 2.0F));
  series = fma(series * u, u, u);
  const VecF exponential = select_below(u, VecF::set1(0.0625F), series, VecF::zero() - log(rest));
  return VecF::zero() - log(exponential);
}

}  // namespace
}  // namespace airi::cpu::AIRI_ISA
