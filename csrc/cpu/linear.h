#pragma once

#include <cstdint>
#include <span>

#include "cpu/dtype.h"
#include "cpu/linear_kernels.h"
#include "cpu/norm_kernels.h"
#include "cpu/packed_weights.h"

namespace airi::cpu {

// y = x W^T (+ bias) with W packed once. Sums are kept in float, in the order of k: a row
// of y depends on its row of x alone, never on m, its neighbours or the number of threads.
//
// x is [m, k] without gaps in the compute type; y is float.
//
// Thread safety: const methods from any thread; they run on the shared pool.
class PackedLinear {
 public:
  // The blocks' rows follow each other in y (q, k and v of one projection, say).
  // `bias` has n floats or is null; it is copied. Uses the active instruction set for good.
  PackedLinear(std::span<const WeightBlock> blocks, std::int64_t k, DType dtype, DType compute,
               const float* bias);

  // out[i, :n] = y[i]; rows of out are `out_stride` >= n floats apart.
  // Throws InvalidArgument for null addresses, m < 0 or a smaller stride.
  // REQUIRES out and x do not overlap.
  void forward(const void* x, std::int64_t m, float* out, std::int64_t out_stride) const;

  // out[i, :n] += y[i].
  void forward_add(const void* x, std::int64_t m, float* out, std::int64_t out_stride) const;

  // out[i, :n] = activation(y[i]), each part while it is in cache.
  void forward_activated(const void* x, std::int64_t m, float* out, std::int64_t out_stride,
                         RowActivation activation) const;

  [[nodiscard]] const PackedWeights& weights() const noexcept { return weights_; }
  [[nodiscard]] PackedWeights& weights() noexcept { return weights_; }

 private:
  // Computes y and gives it in parts to finish(sums, rows, columns, bias, out, out_stride).
  template <class Finish>
  void run(const void* x, std::int64_t m, float* out, std::int64_t out_stride, Finish finish) const;

  const LinearKernels& kernels_;
  const NormKernels& row_kernels_;
  PackedWeights weights_;
  AlignedBuffer bias_;
};

// activation(x G^T + g) * (x U^T + u), the gated half of a transformer's MLP, without ever
// writing either product to memory. The result is in the compute type, ready for the
// down projection. Same rules as PackedLinear.
class PackedGlu {
 public:
  PackedGlu(const void* gate, const void* up, std::int64_t n, std::int64_t k, DType dtype, DType compute,
            Activation activation, const float* gate_bias, const float* up_bias);

  // out is [m, n] without gaps in the compute type.
  void forward(const void* x, std::int64_t m, void* out) const;

  [[nodiscard]] const PackedWeights& weights() const noexcept { return weights_; }
  [[nodiscard]] PackedWeights& weights() noexcept { return weights_; }

 private:
  const LinearKernels& kernels_;
  PackedWeights weights_;
  Activation activation_;
  AlignedBuffer gate_bias_;
  AlignedBuffer up_bias_;
};

}  // namespace airi::cpu
