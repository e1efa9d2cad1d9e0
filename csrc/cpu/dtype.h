#pragma once

#include <cstddef>

namespace airi::cpu {

// Element types that cross the binding as a code beside an address.
enum class DType { kF32, kBF16 };

constexpr std::size_t size_of(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

}  // namespace airi::cpu
