#pragma once

// Replaces the global operator new of the executable whose one source includes this, and counts.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace airi::testing {

inline std::int64_t num_allocations = 0;
inline std::size_t allocated_bytes = 0;

inline void* counted(std::size_t size, std::size_t alignment) {
  ++num_allocations;
  allocated_bytes += size;
  void* memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace airi::testing

// Not inlined: GCC would take a new beside a free for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  return airi::testing::counted(size, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  return airi::testing::counted(size, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
