#include "cpu/rope_kernels.h"

#include "cpu/vec.h"

namespace airi::cpu::AIRI_ISA {
namespace {

constexpr int kLanes = VecF::kLanes;

AIRI_INLINE int lanes_left(int end, int at) { return end - at < kLanes ? end - at : kLanes; }

// Reads elements of a head in float32: as they are, or normed over the head.
class Head {
 public:
  Head(const float* x, const float* weight, int head_dim, float eps) : x_(x), weight_(weight) {
    if (weight == nullptr) return;
    VecF squares = VecF::zero();
    for (int d = 0; d < head_dim; d += kLanes) {
      const VecF v = VecF::load_partial(x + d, lanes_left(head_dim, d));
      squares = fma(v, v, squares);
    }
    const float mean = reduce_add(squares) / static_cast<float>(head_dim);
    factor_ = VecF::set1(1.0F / __builtin_sqrtf(mean + eps));
  }

  AIRI_INLINE VecF load(int d, int count) const {
    const VecF v = VecF::load_partial(x_ + d, count);
    if (weight_ == nullptr) return v;
    return v * factor_ * VecF::load_partial(weight_ + d, count);
  }

 private:
  const float* x_;
  const float* weight_;
  VecF factor_ = VecF::zero();
};

AIRI_INLINE void put(VecF v, DType dtype, std::byte* out, int d, int count) {
  if (dtype == DType::kF32) {
    v.store_partial(reinterpret_cast<float*>(out) + d, count);
  } else {
    v.store_bf16_partial(reinterpret_cast<std::uint16_t*>(out) + d, count);
  }
}

void copy(const Head& x, int first, int head_dim, DType dtype, std::byte* out) {
  for (int d = first; d < head_dim; d += kLanes) {
    const int count = lanes_left(head_dim, d);
    put(x.load(d, count), dtype, out, d, count);
  }
}

// Element d of the first half turns with element d of the second; the rest stays.
void rotate(const Head& x, const float* cos_sin, const RopeShape& s, std::byte* out) {
  const int half = s.rot_dim / 2;
  for (int d = 0; d < half; d += kLanes) {
    const int count = lanes_left(half, d);
    const VecF cosine = VecF::load_partial(cos_sin + d, count);
    const VecF sine = VecF::load_partial(cos_sin + half + d, count);
    const VecF a = x.load(d, count);
    const VecF b = x.load(half + d, count);
    put(a * cosine - b * sine, s.dtype, out, d, count);
    put(b * cosine + a * sine, s.dtype, out, half + d, count);
  }
  copy(x, s.rot_dim, s.head_dim, s.dtype, out);
}

void run(const RopeShape& s, const RopeToken& token) {
  const std::int64_t head_bytes = s.head_dim * (s.dtype == DType::kF32 ? 4 : 2);
  const float* x = token.qkv;
  for (int h = 0; h < s.num_q_heads; ++h, x += s.head_dim) {
    rotate(Head(x, s.q_norm, s.head_dim, s.eps), token.cos_sin, s, token.q_out + h * head_bytes);
  }
  for (int h = 0; h < s.num_kv_heads; ++h, x += s.head_dim) {
    rotate(Head(x, s.k_norm, s.head_dim, s.eps), token.cos_sin, s, token.keys + h * s.head_stride);
  }
  for (int h = 0; h < s.num_kv_heads; ++h, x += s.head_dim) {
    copy(Head(x, nullptr, s.head_dim, s.eps), 0, s.head_dim, s.dtype, token.values + h * s.head_stride);
  }
}

}  // namespace

extern const RopeKernels kRopeKernels = {&run};

}  // namespace airi::cpu::AIRI_ISA
