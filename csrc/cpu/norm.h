#pragma once

#include <cstdint>
#include <optional>

#include "cpu/dtype.h"
#include "cpu/norm_kernels.h"

// What stands around the linear layers of a decoder. Rows are contiguous unless a stride
// is given; nothing may overlap unless said. A row's result depends on that row alone,
// so neither m nor the number of threads changes a bit of it. Safe from any thread. Each throws
// InvalidArgument for a null address, m < 0, or a row without elements.

namespace airi::cpu {

// out[i] = x[i] / sqrt(mean(x[i]^2) + eps) * weight for m rows of h; rows of x are
// `x_stride` >= h floats apart, rows of out h. out may be x when it is float and x_stride == h.
void rms_norm(const float* x, std::int64_t x_stride, const float* weight, void* out, DType out_dtype,
              std::int64_t m, std::int64_t h, float eps);

// residual[i] += x[i] / sqrt(mean(x[i]^2) + eps) * weight: families that normalise a
// block's output before they add it.
void rms_norm_add(const float* x, const float* weight, float* residual, std::int64_t m, std::int64_t h,
                  float eps);

// x[i] = (x[i] - mean(x[i])) / sqrt(var(x[i]) + eps) * weight + bias, in place.
void layer_norm(const float* weight, const float* bias, float* x, std::int64_t m, std::int64_t h, float eps);

// out[i] = table[ids[i]] * scale, in float. With `rows` the ids are checked
// first: throws InvalidArgument for one outside of [0, rows), before anything is written.
void embed(const void* table, DType dtype, std::optional<std::int64_t> rows, const std::int32_t* ids,
           std::int64_t m, std::int64_t h, float* out, float scale);

// out[i] = x[rows[i]], rows of `row_bytes`: the rows of a batch that need logits, say.
void gather_rows(const void* x, std::int64_t row_bytes, const std::int32_t* rows, std::int64_t m, void* out);

// Rounds `count` floats to nearest even / widens `count` bfloat16 values.
void to_bf16(const float* x, std::uint16_t* out, std::int64_t count);
void to_f32(const std::uint16_t* x, float* out, std::int64_t count);

}  // namespace airi::cpu
