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
    .scale_f32 = scale_row<float>,
    .scale_bf16 = scale_row<std::uint16_t>,
    .to_bf16 = to_bf16,
};

}  // namespace airi::cpu::AIRI_ISA
