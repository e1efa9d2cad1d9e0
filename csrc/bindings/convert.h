#pragma once

#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "kv/hash_chain.h"

namespace airi::bindings {

inline std::vector<std::uint8_t> to_bytes(const pybind11::bytes& bytes) {
  const std::string_view view(bytes);
  return {view.begin(), view.end()};
}

// Throws InvalidArgument unless there are 16 bytes.
inline HashKey to_key(const pybind11::bytes& bytes) {
  const std::string_view view(bytes);
  HashKey key{};
  if (view.size() != key.size()) {
    throw InvalidArgument("hash_key must be 16 bytes, got " + std::to_string(view.size()));
  }
  std::ranges::copy(view, key.begin());
  return key;
}

}  // namespace airi::bindings
