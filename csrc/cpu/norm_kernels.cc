#include "cpu/norm_kernels.h"

#include "cpu/vec.h"

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kLanes = VecF::kLanes;

// Calls body(i, count) for whole vectors and then for what is left of n.
template <class Body>
AIRI_INLINE void for_each_vector(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}

AIRI_INLINE VecF load_some(const float* p, int count) {
  return count == kLanes ? VecF::load(p) : VecF::load_partial(p, count);
}

AIRI_INLINE VecF load_some(const std::uint16_t* p, int count) {
  return count == kLanes ? VecF::load_bf16(p) : VecF::load_bf16_partial(p, count);
}

AIRI_INLINE void store_some(VecF x, float* p, int count) {
  count == kLanes ? x.store(p) : x.store_partial(p, count);
}

AIRI_INLINE void store_some(VecF x, std::uint16_t* p, int count) {
  count == kLanes ? x.store_bf16(p) : x.store_bf16_partial(p, count);
}

AIRI_INLINE float inverse_rms(const float* x, std::int64_t h, float eps) {
  // Four sums hide the latency of fma; they are folded in a fixed order.
  VecF sum[4] = {VecF::zero(), VecF::zero(), VecF::zero(), VecF::zero()};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= h; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const VecF v = VecF::load(x + i + j * kLanes);
      sum[j] = fma(v, v, sum[j]);
    }
  }
  for_each_vector(h - i, [&](std::int64_t offset, int count) {
    const VecF v = load_some(x + i + offset, count);
    sum[0] = fma(v, v, sum[0]);
  });
  const float total = reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
  return 1.0F / __builtin_sqrtf(total / static_cast<float>(h) + eps);
}

AIRI_INLINE float mean(const float* x, std::int64_t h) {
  VecF sum = VecF::zero();
  for_each_vector(h, [&](std::int64_t i, int count) { sum = sum + load_some(x + i, count); });
  return reduce_add(sum) / static_cast<float>(h);
}

// The mean first, then what is left of it: sums of squares alone lose digits where the mean is large.
void layer_norm(const float* weight, const float* bias, float* x, std::int64_t h, float eps) {
  const VecF middle = VecF::set1(mean(x, h));
  for_each_vector(
      h, [&](std::int64_t i, int count) { store_some(load_some(x + i, count) - middle, x + i, count); });
  const VecF scale = VecF::set1(inverse_rms(x, h, eps));
  for_each_vector(h, [&](std::int64_t i, int count) {
    const VecF v = load_some(x + i, count) * scale;
    store_some(fma(v, load_some(weight + i, count), load_some(bias + i, count)), x + i, count);
  });
}

// erf to 1.5e-7 everywhere: Abramowitz and Stegun, 7.1.26.
AIRI_INLINE VecF erf(VecF x) {
  const VecF zero = VecF::zero();
  const VecF one = VecF::set1(1.0F);
  const VecF size = max(x, zero - x);
  const VecF t = one / fma(size, VecF::set1(0.3275911F), one);
  VecF p = VecF::set1(1.061405429F);
  p = fma(p, t, VecF::set1(-1.453152027F));
  p = fma(p, t, VecF::set1(1.421413741F));
  p = fma(p, t, VecF::set1(-0.284496736F));
  p = fma(p, t, VecF::set1(0.254829592F));
  const VecF y = one - p * t * exp(zero - size * size);
  return select_below(x, zero, zero - y, y);
}

AIRI_INLINE VecF activated(RowActivation activation, VecF x) {
  const VecF one = VecF::set1(1.0F);
  if (activation == RowActivation::kRelu) return max(VecF::zero(), x);
  if (activation == RowActivation::kGelu) {
    return x * VecF::set1(0.5F) * (one + erf(x * VecF::set1(0.70710678118654752F)));
  }
  // x / 2 (1 + tanh(u)) = x / (1 + e^(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)
  const VecF cubic = fma(x * x * x, VecF::set1(0.044715F), x);
  return x / (one + exp(cubic * VecF::set1(-1.59576912160573071F)));
}

void activate(RowActivation activation, float* x, std::int64_t h) {
  for_each_vector(h, [&](std::int64_t i, int count) {
    store_some(activated(activation, load_some(x + i, count)), x + i, count);
  });
}

template <class Out, bool kAdd>
void rms_norm(const float* x, const float* weight, void* out, std::int64_t h, float eps) {
  const VecF scale = VecF::set1(inverse_rms(x, h, eps));
  Out* y = static_cast<Out*>(out);
  for_each_vector(h, [&](std::int64_t i, int count) {
    const VecF v = load_some(x + i, count) * scale * load_some(weight + i, count);
    store_some(kAdd ? load_some(y + i, count) + v : v, y + i, count);
  });
}

template <class In>
void scale_row(const void* x, float scale, float* out, std::int64_t h) {
  const In* in = static_cast<const In*>(x);
  const VecF factor = VecF::set1(scale);
  for_each_vector(
      h, [&](std::int64_t i, int count) { store_some(load_some(in + i, count) * factor, out + i, count); });
}

void to_bf16(const float* x, std::uint16_t* out, std::int64_t h) {
  for_each_vector(h, [&](std::int64_t i, int count) { store_some(load_some(x + i, count), out + i, count); });
}

}  // namespace

extern const NormKernels kNormKernels;
const NormKernels kNormKernels = {
    .rms_norm_f32 = rms_norm<float, false>,
    .rms_norm_bf16 = rms_norm<std::uint16_t, false>,
    .rms_norm_add = rms_norm<float, true>,
    .layer_norm = layer_norm,
    .activate = activate,
    .scale_f32 = scale_row<float>,
    .scale_bf16 = scale_row<std::uint16_t>,
    .to_bf16 = to_bf16,
};

}  // namespace airi::cpu::AIRI_ISA
