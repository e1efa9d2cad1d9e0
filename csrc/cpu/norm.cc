#include "cpu/norm.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <string>

#include "base/check.h"
#include "cpu/norm_kernels.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

// Elements below which waking another thread costs more than it saves.
constexpr std::int64_t kElementsPerChunk = 16 << 10;

const NormKernels& kernels() { return AIRI_SELECT_KERNELS(kNormKernels, active_isa()); }

// Of m rows of h elements, all of whose arrays must be addresses.
void check(std::int64_t m, std::int64_t h, std::initializer_list<const void*> arrays) {
  if (m < 0) throw InvalidArgument("m must be >= 0, got " + std::to_string(m));
  if (h < 1) throw InvalidArgument("a row must hold at least 1, got " + std::to_string(h));
  if (m > 0 && std::ranges::find(arrays, nullptr) != arrays.end()) {
    throw InvalidArgument("every array must be an address, got 0");
  }
}

// Calls body(i) for each of m rows of h elements, several rows to a chunk.
template <class Body>
void for_each_row(std::int64_t m, std::int64_t h, Body&& body) {
  const std::int64_t rows = std::max<std::int64_t>(1, kElementsPerChunk / std::max<std::int64_t>(1, h));
  shared_pool().parallel_for((m + rows - 1) / rows, [&](std::int64_t chunk) {
    const std::int64_t end = std::min(m, (chunk + 1) * rows);
    for (std::int64_t i = chunk * rows; i < end; ++i) body(i);
  });
}

// The same for one row of `count` elements: body(first, how many).
template <class Body>
void for_each_piece(std::int64_t count, Body&& body) {
  for_each_row((count + kElementsPerChunk - 1) / kElementsPerChunk, kElementsPerChunk, [&](std::int64_t i) {
    const std::int64_t begin = i * kElementsPerChunk;
    body(begin, std::min(kElementsPerChunk, count - begin));
  });
}

}  // namespace

void rms_norm(const float* x, std::int64_t x_stride, const float* weight, void* out, DType out_dtype,
              std::int64_t m, std::int64_t h, float eps) {
  check(m, h, {x, weight, out});
  if (x_stride < h) {
    throw InvalidArgument("ldx must be >= h (" + std::to_string(h) + "), got " + std::to_string(x_stride));
  }
  const auto run = out_dtype == DType::kF32 ? kernels().rms_norm_f32 : kernels().rms_norm_bf16;
  const std::int64_t out_bytes = h * static_cast<std::int64_t>(size_of(out_dtype));
  for_each_row(m, h, [&](std::int64_t i) {
    run(x + i * x_stride, weight, static_cast<std::byte*>(out) + i * out_bytes, h, eps);
  });
}

void rms_norm_add(const float* x, const float* weight, float* residual, std::int64_t m, std::int64_t h,
                  float eps) {
  check(m, h, {x, weight, residual});
  const auto run = kernels().rms_norm_add;
  for_each_row(m, h, [&](std::int64_t i) { run(x + i * h, weight, residual + i * h, h, eps); });
}

void layer_norm(const float* weight, const float* bias, float* x, std::int64_t m, std::int64_t h, float eps) {
  check(m, h, {weight, bias, x});
  const auto run = kernels().layer_norm;
  for_each_row(m, h, [&](std::int64_t i) { run(weight, bias, x + i * h, h, eps); });
}

void embed(const void* table, DType dtype, std::optional<std::int64_t> rows, const std::int32_t* ids,
           std::int64_t m, std::int64_t h, float* out, float scale) {
  check(m, h, {table, ids, out});
  for (std::int64_t i = 0; rows.has_value() && i < m; ++i) {
    if (ids[i] < 0 || ids[i] >= *rows) {
      throw InvalidArgument("ids must be in [0, " + std::to_string(*rows) + "), got " +
                            std::to_string(ids[i]));
    }
  }
  const auto run = dtype == DType::kF32 ? kernels().scale_f32 : kernels().scale_bf16;
  const std::int64_t row_bytes = h * static_cast<std::int64_t>(size_of(dtype));
  for_each_row(m, h, [&](std::int64_t i) {
    run(static_cast<const std::byte*>(table) + ids[i] * row_bytes, scale, out + i * h, h);
  });
}

void gather_rows(const void* x, std::int64_t row_bytes, const std::int32_t* rows, std::int64_t m, void* out) {
  check(m, row_bytes, {x, rows, out});
  for_each_row(m, row_bytes / 4, [&](std::int64_t i) {
    std::memcpy(static_cast<std::byte*>(out) + i * row_bytes,
                static_cast<const std::byte*>(x) + rows[i] * row_bytes, static_cast<std::size_t>(row_bytes));
  });
}

void to_bf16(const float* x, std::uint16_t* out, std::int64_t count) {
  check(count, 1, {x, out});
  const auto run = kernels().to_bf16;
  for_each_piece(count, [&](std::int64_t begin, std::int64_t n) { run(x + begin, out + begin, n); });
}

void to_f32(const std::uint16_t* x, float* out, std::int64_t count) {
  check(count, 1, {x, out});
  const auto run = kernels().scale_bf16;
  for_each_piece(count, [&](std::int64_t begin, std::int64_t n) { run(x + begin, 1.0F, out + begin, n); });
}

}  // namespace airi::cpu
