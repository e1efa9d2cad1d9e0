#pragma once

namespace airi {

// Tells the processor that the thread spins: less power, and more of a core for who shares it.
inline void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace airi
