#pragma once

#include "cpu/vec.h"

// Brings the scattered K and V rows of up to kSubtileKeys keys into the order in which
// attention's products read them. Rows that no query sees are never read: a null row
// counts as zeros.

namespace airi::cpu::AIRI_ISA {
namespace {

// out[j] lane i = word (first + j) of rows[i], for the kLanes rows; words beyond `words`
// are zero. Reads no word beyond.
#if defined(__AVX512F__)
AIRI_INLINE void transpose_words(const float* const* rows, int first, int words, VecF* out) {
  const int count = words - first < 16 ? words - first : 16;
  __m512 r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    r[i] = rows[i] == nullptr ? _mm512_setzero_ps() : VecF::load_partial(rows[i] + first, count).v;
  }
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  // r[4g + j] holds word 4l + j of rows 4g.. in its 128-bit lane l.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 lo = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);
    const __m512 hi = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
    const __m512 lo2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
    const __m512 hi2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
    out[j].v = _mm512_shuffle_f32x4(lo, lo2, 0x88);
    out[8 + j].v = _mm512_shuffle_f32x4(lo, lo2, 0xdd);
    out[4 + j].v = _mm512_shuffle_f32x4(hi, hi2, 0x88);
    out[12 + j].v = _mm512_shuffle_f32x4(hi, hi2, 0xdd);
  }
}
#elif defined(__AVX2__)
AIRI_INLINE void transpose_words(const float* const* rows, int first, int words, VecF* out) {
  const int count = words - first < 8 ? words - first : 8;
  __m256 r[8];
  for (int i = 0; i < 8; ++i) {
    r[i] = rows[i] == nullptr ? _mm256_setzero_ps() : VecF::load_partial(rows[i] + first, count).v;
  }
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    out[j].v = _mm256_permute2f128_ps(r[j], r[4 + j], 0x20);
    out[4 + j].v = _mm256_permute2f128_ps(r[j], r[4 + j], 0x31);
  }
}
#else
AIRI_INLINE void transpose_words(const float* const* rows, int first, int words, VecF* out) {
  for (int j = 0; j < VecF::kLanes; ++j) {
    for (int i = 0; i < VecF::kLanes; ++i) {
      const bool present = rows[i] != nullptr && first + j < words;
      out[j].v[i] = present ? rows[i][first + j] : 0.0F;
    }
  }
}
#endif

// How elements lie in the cache and how the products want them.
enum class Packing { kFloat, kWidened, kPairs };  // float; bfloat16 as float; bfloat16 pairs

// Words that one key of head_dim elements takes in a product.
template <Packing kPacking>
constexpr int packed_words(int head_dim) {
  return kPacking == Packing::kPairs ? head_dim / 2 : head_dim;
}

// out[word * ld + key] for keys [first, last) of rows[]; first and last are multiples of
// kLanes, rows has an entry for each key before last.
template <Packing kPacking, class Ahead>
void pack_keys(const float* const* rows, int first, int last, int head_dim, int ld, float* out,
               Ahead& ahead) {
  constexpr int kLanes = VecF::kLanes;
  const int words = kPacking == Packing::kFloat ? head_dim : head_dim / 2;
  for (int key = first; key < last; key += kLanes) {
    ahead.fetch(kLanes / 2);
    for (int word = 0; word < words; word += kLanes) {
      VecF columns[kLanes];
      transpose_words(rows + key, word, words, columns);
      const int count = words - word < kLanes ? words - word : kLanes;
      for (int j = 0; j < count; ++j) {
        if constexpr (kPacking == Packing::kWidened) {
          std::uint32_t bits[kLanes];
          columns[j].store(reinterpret_cast<float*>(bits));
          VecF::even_bf16(bits).store(out + 2 * (word + j) * ld + key);
          VecF::odd_bf16(bits).store(out + (2 * (word + j) + 1) * ld + key);
        } else {
          columns[j].store(out + (word + j) * ld + key);
        }
      }
    }
  }
}

AIRI_INLINE VecF load_widened(const float* row, int first, int count) {
  const auto* p = reinterpret_cast<const std::uint16_t*>(row) + first;
  return VecF::load_bf16_partial(p, count);
}

#ifdef __AVX512BF16__
// Word d of the result holds element first + d of both rows, `a` in the lower half.
AIRI_INLINE VecF load_pairs(const float* a, const float* b, int first, int count) {
  const auto load = [=](const float* row) {
    if (row == nullptr) return _mm512_setzero_si512();
    const auto* p = reinterpret_cast<const std::uint16_t*>(row) + first;
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lane_mask(count), p));
  };
  const __m512i pair = _mm512_or_si512(load(a), _mm512_slli_epi32(load(b), 16));
  return {_mm512_castsi512_ps(pair)};
}
#endif

// out[line * ld + element] for keys [first, last) of rows[], where a line is a key, or
// with kPairs two; elements up to ld are zero. `first` is even, rows has an entry for
// every key before last and, with kPairs, for one more.
template <Packing kPacking, class Ahead>
void pack_values(const float* const* rows, int first, int last, int head_dim, int ld, float* out,
                 Ahead& ahead) {
  constexpr int kLanes = VecF::kLanes;
  constexpr int kKeys = kPacking == Packing::kPairs ? 2 : 1;
  for (int key = first; key < last; key += kKeys) {
    float* line = out + key / kKeys * ld;
    if (key % 2 == 0) ahead.fetch(1);
    for (int d = 0; d < ld; d += kLanes) {
      const int left = head_dim - d;
      const int count = left < 0 ? 0 : left < kLanes ? left : kLanes;
      VecF v = VecF::zero();
      if constexpr (kPacking == Packing::kPairs) {
#ifdef __AVX512BF16__
        v = load_pairs(rows[key], rows[key + 1], d, count);
#endif
      } else if (rows[key] != nullptr) {
        v = kPacking == Packing::kFloat ? VecF::load_partial(rows[key] + d, count)
                                        : load_widened(rows[key], d, count);
      }
      v.store(line + d);
    }
  }
}

}  // namespace
}  // namespace airi::cpu::AIRI_ISA
