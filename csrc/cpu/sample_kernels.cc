#include "cpu/sample_kernels.h"

#include "cpu/vec.h"
#include "cpu/vec_words.h"

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kLanes = VecF::kLanes;
constexpr float kInfinity = __builtin_inff();

// The values [first, first + kSampleBlock) of n; the last block is padded in `tail`.
AIRI_INLINE const float* block_at(const float* x, int n, int first, float* tail) {
  if (n - first >= kSampleBlock) return x + first;
  for (int i = 0; i < kSampleBlock; ++i) tail[i] = first + i < n ? x[first + i] : -kInfinity;
  return tail;
}

RowScan scan(const float* x, int v, float* maxima) {
  float tail[kSampleBlock];
  RowScan result{-kInfinity, 0, false};
  int best_block = 0;
  SignedWords unordered{};
  for (int first = 0; first < v; first += kSampleBlock) {
    const float* block = block_at(x, v, first, tail);
    VecF greatest = VecF::set1(-kInfinity);
    for (int i = 0; i < kSampleBlock; i += kLanes) {
      const VecF y = VecF::load(block + i);
      unordered |= (SignedWords)(y.v != y.v);
      greatest = max(greatest, y);
    }
    const float top = reduce_max(greatest);
    maxima[first / kSampleBlock] = top;
    if (top > result.max) {
      result.max = top;
      best_block = first;
    }
  }
  for (int i = 0; i < kLanes; ++i) result.nan |= unordered[i] != 0;
  const int end = best_block + kSampleBlock < v ? best_block + kSampleBlock : v;
  result.argmax = best_block;
  while (result.argmax + 1 < end && x[result.argmax] != result.max) ++result.argmax;
  return result;
}

double sum_exp(const float* x, int n, float offset, float factor) {
  constexpr int kStretch = 4096;  // summed in float before the double takes over
  float tail[kSampleBlock];
  const VecF shift = VecF::set1(offset);
  const VecF scale = VecF::set1(factor);
  double total = 0;
  for (int stretch = 0; stretch < n; stretch += kStretch) {
    VecF sum = VecF::zero();
    const int end = stretch + kStretch < n ? stretch + kStretch : n;
    for (int first = stretch; first < end; first += kSampleBlock) {
      const float* block = block_at(x, n, first, tail);
      for (int i = 0; i < kSampleBlock; i += kLanes) {
        sum = sum + exp((VecF::load(block + i) - shift) * scale);
      }
    }
    total += reduce_add(sum);
  }
  return total;
}

// Appends the lanes of y for which keep is set.
AIRI_INLINE int append_above(VecF y, VecF bound, float* out) {
#if defined(__AVX512F__)
  const __mmask16 keep = _mm512_cmp_ps_mask(y.v, bound.v, _CMP_GT_OQ);
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(keep, y.v));
  return __builtin_popcount(keep);
#else
  float values[kLanes];
  y.store(values);
  int count = 0;
  for (int i = 0; i < kLanes; ++i) {
    out[count] = values[i];
    count += values[i] > bound.v[0] ? 1 : 0;
  }
  return count;
#endif
}

int collect(const float* x, int v, const float* maxima, float bound, float* out) {
  float tail[kSampleBlock];
  // The next value below: append_above is strict.
  const VecF below = VecF::set1(__builtin_nextafterf(bound, -kInfinity));
  int count = 0;
  for (int first = 0; first < v; first += kSampleBlock) {
    if (maxima[first / kSampleBlock] < bound) continue;
    const float* block = block_at(x, v, first, tail);
    for (int i = 0; i < kSampleBlock; i += kLanes) {
      count += append_above(VecF::load(block + i), below, out + count);
    }
  }
  return count;
}

Partition partition(const float* x, int n, float pivot, float offset, float factor, float* above,
                    float* below) {
  float tail[kSampleBlock];
  const VecF at = VecF::set1(pivot);
  Partition result{0, 0, 0};
  for (int first = 0; first < n; first += kSampleBlock) {
    const float* block = block_at(x, n, first, tail);
    for (int i = 0; i < kSampleBlock; i += kLanes) {
      const VecF y = VecF::load(block + i);
      result.above += append_above(y, at, above + result.above);
      // Negated, so that one comparison serves; the padding of the last block becomes
      // plus infinity there and is dropped below.
      result.below += append_above(VecF::zero() - y, VecF::zero() - at, below + result.below);
    }
  }
  while (result.below > 0 && below[result.below - 1] == kInfinity) --result.below;
  for (int i = 0; i < result.below; ++i) below[i] = -below[i];
  result.mass_above = sum_exp(above, result.above, offset, factor);
  return result;
}

int count_above(const float* x, int v, float bound) {
  int count = 0;
  for (int i = 0; i < v; ++i) count += x[i] > bound ? 1 : 0;
  return count;
}

// Visits the tokens of a row and keeps the one with the greatest logit / T + noise.
class Picker {
 public:
  Picker(const float* x, int v, const PickArgs& args)
      : x_(x), v_(v), args_(args), random_(args.seed), factor_(VecF::set1(args.inverse_temperature)) {
    for (int i = 0; i < kLanes; ++i) lanes_[i] = i;
  }

  std::int32_t run(const float* maxima) {
    // The likeliest token's block first: what it reaches is a bound that most others miss.
    visit(args_.start / kSampleBlock * kSampleBlock);
    for (int first = 0; first < v_; first += kSampleBlock) {
      const float greatest = maxima[first / kSampleBlock];
      const bool hopeless = greatest * args_.inverse_temperature + kMostNoise < bound_;
      if (greatest >= args_.threshold && !hopeless) visit(first);
    }
    int winner = 0;
    for (int i = 1; i < kLanes; ++i) {
      const bool higher = best_.v[i] > best_.v[winner];
      const bool tied = best_.v[i] == best_.v[winner] && ids_[i] < ids_[winner];
      if (higher || tied) winner = i;
    }
    return ids_[winner];
  }

 private:
  static constexpr float kMostNoise = 22.9F;

  void visit(int first) {
    float tail[kSampleBlock];
    const float* block = block_at(x_, v_, first, tail);
    for (int i = 0; i < kSampleBlock; i += 4 * kLanes) {
      Words words[4];
      random_.words(static_cast<std::uint32_t>(first + i) / 4, args_.draw, words);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const int at = i + j * kLanes;
        const VecF logit = VecF::load(block + at);
        if (may_win(logit, words[j])) consider(logit, words[j], lanes_ + (first + at));
      }
    }
  }

  // Noise above t takes u < -ln(1 - u) < e^-t, which is cheaper to compare than two
  // logarithms; the factor covers rounding.
  AIRI_INLINE bool may_win(VecF logit, Words words) const {
    const VecF gap = fma(logit, factor_, VecF::set1(-bound_));
    return any_below(uniform(words), exp(gap) * VecF::set1(1.0001F));
  }

  AIRI_INLINE static bool any_below(VecF a, VecF b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ) != 0;
#else
    return reduce_max(select_below(a, b, VecF::set1(1.0F), VecF::zero())) > 0;
#endif
  }

  void consider(VecF logit, Words words, SignedWords id) {
    const VecF score = fma(logit, factor_, gumbel(words));
    const VecF threshold = VecF::set1(args_.threshold);
    const SignedWords above = (SignedWords)(logit.v > threshold.v);
    const SignedWords tied = (SignedWords)(logit.v == threshold.v) & (id <= args_.last_tie);
    const SignedWords better = (SignedWords)(score.v > best_.v) & (above | tied);
    ids_ = (better & id) | (~better & ids_);
    const Words chosen = ((Words)better & bits_of(score)) | (~(Words)better & bits_of(best_));
    best_ = float_of_bits(chosen);
    bound_ = reduce_max(best_);
  }

  const float* x_;
  const int v_;
  const PickArgs args_;
  const Philox random_;
  const VecF factor_;
  SignedWords lanes_;
  VecF best_ = VecF::set1(-kInfinity);  // of each lane, and the ids that reached it
  SignedWords ids_{};
  float bound_ = -kInfinity;  // the greatest of best_
};

std::int32_t pick(const float* x, int v, const float* maxima, const PickArgs& args) {
  return Picker(x, v, args).run(maxima);
}

}  // namespace

extern const SampleKernels kSampleKernels = {&scan, &sum_exp, &collect, &partition, &count_above, &pick};

}  // namespace airi::cpu::AIRI_ISA
