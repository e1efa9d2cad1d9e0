#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace airi {

// Ids are distinct types, so that a slot is never passed where a block is meant.
// Dense ids (blocks, slabs, models, slots) index vectors through index().
enum class BlockId : std::int32_t {};
enum class SlabId : std::int32_t {};
enum class ModelId : std::int32_t {};
enum class SlotId : std::int32_t {};
enum class TenantId : std::int64_t {};
enum class RequestId : std::int64_t {};
enum class StepId : std::int64_t {};

// The id as the integer it is stored as.
template <class Id>
  requires std::is_enum_v<Id>
[[nodiscard]] constexpr std::underlying_type_t<Id> raw(Id id) noexcept {
  return static_cast<std::underlying_type_t<Id>>(id);
}

// The id as a vector index. REQUIRES: the id is not negative.
template <class Id>
  requires std::is_enum_v<Id>
[[nodiscard]] constexpr std::size_t index(Id id) noexcept {
  return static_cast<std::size_t>(id);
}

// ceil(a / b) for a >= 0, b > 0.
template <class Int>
[[nodiscard]] constexpr Int ceil_div(Int a, Int b) noexcept {
  return (a + b - 1) / b;
}

}  // namespace airi
