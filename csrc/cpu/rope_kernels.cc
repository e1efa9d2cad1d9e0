#include "cpu/rope_kernels.h"

#include "cpu/kv_layout.h"
#include "cpu/vec.h"

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kLanes = VecF::kLanes;

AIRI_INLINE int lanes_left(int end, int at) { return end - at < kLanes ? end - at : kLanes; }

// out = x * weight / sqrt(mean(x^2) + eps)
void normalise(const float* x, const float* weight, int head_dim, float eps, float* out) {
  VecF squares = VecF::zero();
  for (int d = 0; d < head_dim; d += kLanes) {
    const VecF v = VecF::load_partial(x + d, lanes_left(head_dim, d));
    squares = fma(v, v, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(head_dim);
  const VecF factor = VecF::set1(1.0F / __builtin_sqrtf(mean + eps));
  for (int d = 0; d < head_dim; d += kLanes) {
    const int count = lanes_left(head_dim, d);
    const VecF v = VecF::load_partial(x + d, count) * factor;
    (v * VecF::load_partial(weight + d, count)).store_partial(out + d, count);
  }
}

// Element d of the first half turns with element d of the second; the rest stays.
void rotate(const float* x, const float* cos_sin, int rot_dim, int head_dim, float* out) {
  const int half = rot_dim / 2;
  for (int d = 0; d < half; d += kLanes) {
    const int count = lanes_left(half, d);
    const VecF c = VecF::load_partial(cos_sin + d, count);
    const VecF s = VecF::load_partial(cos_sin + half + d, count);
    const VecF a = VecF::load_partial(x + d, count);
    const VecF b = VecF::load_partial(x + half + d, count);
    (a * c - b * s).store_partial(out + d, count);
    (b * c + a * s).store_partial(out + half + d, count);
  }
  for (int d = rot_dim; d < head_dim; d += kLanes) {
    const int count = lanes_left(head_dim, d);
    VecF::load_partial(x + d, count).store_partial(out + d, count);
  }
}

void write(const float* x, int head_dim, DType dtype, std::byte* out) {
  for (int d = 0; d < head_dim; d += kLanes) {
    const int count = lanes_left(head_dim, d);
    const VecF v = VecF::load_partial(x + d, count);
    if (dtype == DType::kF32) {
      v.store_partial(reinterpret_cast<float*>(out) + d, count);
    } else {
      v.store_bf16_partial(reinterpret_cast<std::uint16_t*>(out) + d, count);
    }
  }
}

void run(const RopeShape& s, const RopeToken& token) {
  float normed[KvLayout::kMaxHeadDim];
  float rotated[KvLayout::kMaxHeadDim];
  const auto turn = [&](const float* x, const float* norm, std::byte* out) {
    if (norm != nullptr) {
      normalise(x, norm, s.head_dim, s.eps, normed);
      x = normed;
    }
    rotate(x, token.cos_sin, s.rot_dim, s.head_dim, rotated);
    write(rotated, s.head_dim, s.dtype, out);
  };
  const std::int64_t head_bytes = s.head_dim * (s.dtype == DType::kF32 ? 4 : 2);
  const float* x = token.qkv;
  for (int h = 0; h < s.num_q_heads; ++h, x += s.head_dim) turn(x, s.q_norm, token.q_out + h * head_bytes);
  for (int h = 0; h < s.num_kv_heads; ++h, x += s.head_dim) turn(x, s.k_norm, token.keys + h * s.head_stride);
  for (int h = 0; h < s.num_kv_heads; ++h, x += s.head_dim) {
    write(x, s.head_dim, s.dtype, token.values + h * s.head_stride);
  }
}

}  // namespace

extern const RopeKernels kRopeKernels = {&run};

}  // namespace airi::cpu::AIRI_ISA
