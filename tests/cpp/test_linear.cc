// Linear layers on buffers of exactly the right size, for every instruction set of this
// machine: under ASan and UBSan this shows reads and writes past an end. The values are
// small integers, so that every sum is exact in any order.

#include <cmath>
#include <cstdint>
#include <iostream>
#include <memory>
#include <vector>

#include "base/check.h"
#include "cpu/bf16.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/norm.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

int small_integer(std::int64_t i) { return static_cast<int>((i * 7919 + 13) % 11) - 5; }

// `count` small integers as `dtype`, in a heap block without slack.
struct Values {
  Values(DType dtype, std::int64_t count)
      : bytes(new std::byte[static_cast<std::size_t>(count) * size_of(dtype)]) {
    for (std::int64_t i = 0; i < count; ++i) {
      const auto value = static_cast<float>(small_integer(i));
      if (dtype == DType::kF32) {
        reinterpret_cast<float*>(bytes.get())[i] = value;
      } else {
        reinterpret_cast<std::uint16_t*>(bytes.get())[i] = float_to_bf16(value);
      }
    }
  }
  std::unique_ptr<std::byte[]> bytes;
};

double product(std::int64_t row, std::int64_t column, std::int64_t k) {
  double sum = 0;
  for (std::int64_t i = 0; i < k; ++i) sum += small_integer(row * k + i) * small_integer(column * k + i);
  return sum;
}

void check_linear(DType weight_dtype, DType compute, std::int64_t m, std::int64_t n, std::int64_t k) {
  const Values x(compute, m * k);
  const Values weight(weight_dtype, n * k);
  const WeightBlock block{weight.bytes.get(), n};
  const PackedLinear layer({&block, 1}, k, weight_dtype, compute, nullptr);
  const std::unique_ptr<float[]> out(new float[static_cast<std::size_t>(m * n)]);
  layer.forward(x.bytes.get(), m, out.get(), n);
  layer.forward_add(x.bytes.get(), m, out.get(), n);
  for (std::int64_t i = 0; i < m * n; ++i) {
    AIRI_CHECK(out[static_cast<std::size_t>(i)] == 2 * product(i / n, i % n, k))
        << isa_name(active_isa()) << " m " << m << " n " << n << " k " << k << " at " << i;
  }
}

void check_glu(DType compute, std::int64_t m, std::int64_t n, std::int64_t k) {
  const Values x(compute, m * k);
  const Values weight(compute, n * k);
  const PackedGlu layer(weight.bytes.get(), weight.bytes.get(), n, k, compute, compute, Activation::kSilu,
                        nullptr, nullptr);
  const std::unique_ptr<std::byte[]> out(new std::byte[static_cast<std::size_t>(m * n) * size_of(compute)]);
  layer.forward(x.bytes.get(), m, out.get());
  const double up = product(m - 1, n - 1, k);
  const double expected = up / (1 + std::exp(-up)) * up;
  const std::int64_t last = m * n - 1;
  const double got = compute == DType::kF32
                         ? reinterpret_cast<const float*>(out.get())[last]
                         : bf16_to_float(reinterpret_cast<const std::uint16_t*>(out.get())[last]);
  AIRI_CHECK(std::abs(got - expected) <= std::abs(expected) / 200 + 1e-6) << got << " != " << expected;
}

void check_norm(DType out_dtype, std::int64_t m, std::int64_t h) {
  const Values x(DType::kF32, m * h);
  const Values weight(DType::kF32, h);
  const std::unique_ptr<std::byte[]> out(new std::byte[static_cast<std::size_t>(m * h) * size_of(out_dtype)]);
  const auto* floats = reinterpret_cast<const float*>(x.bytes.get());
  rms_norm(floats, h, reinterpret_cast<const float*>(weight.bytes.get()), out.get(), out_dtype, m, h, 1.0F);
  double squares = 0;
  for (std::int64_t i = 0; i < h; ++i) squares += small_integer(i) * small_integer(i);
  const double expected =
      small_integer(0) * small_integer(0) / std::sqrt(squares / static_cast<double>(h) + 1.0);
  const double got = out_dtype == DType::kF32
                         ? reinterpret_cast<const float*>(out.get())[0]
                         : bf16_to_float(reinterpret_cast<const std::uint16_t*>(out.get())[0]);
  AIRI_CHECK(std::abs(got - expected) <= std::abs(expected) / 200) << got << " != " << expected;
}

void every_size_stays_inside_its_buffers() {
  constexpr DType kBoth[] = {DType::kF32, DType::kBF16};
  for (const std::int64_t m : {1, 2, 7, 9, 65}) {
    for (const std::int64_t n : {1, 15, 48, 50}) {
      for (const std::int64_t k : {1, 2, 17, 64}) {
        for (const DType compute : kBoth) {
          for (const DType weight : kBoth) check_linear(weight, compute, m, n, k);
          check_glu(compute, m, n, k);
        }
      }
      for (const DType dtype : kBoth) check_norm(dtype, m, n);
    }
  }
}

}  // namespace
}  // namespace airi::cpu

int main() {
  using namespace airi::cpu;
  set_num_threads(2);
  const int best = static_cast<int>(detect_isa());
  for (int isa = 0; isa <= best; ++isa) {
    set_isa(static_cast<Isa>(isa));
    every_size_stays_inside_its_buffers();
  }
  std::cout << "ok\n";
  return 0;
}
