#pragma once

#include <string_view>

// Which instruction set the CPU kernels use. Kernel sources are compiled once per
// instruction set, each time inside the namespace AIRI_ISA (portable, avx2, avx512,
// avx512_bf16), and offer one table of function pointers there:
//
//   // x_kernels.h
//   struct XKernels { void (*run)(const float*, float*); };
//   AIRI_DECLARE_KERNELS(XKernels, kXKernels);
//   // x_kernels.cc, listed in AIRI_ISA_SOURCES of csrc/cpu/CMakeLists.txt
//   namespace airi::cpu::AIRI_ISA { namespace { ... } extern const XKernels kXKernels = {...}; }
//   // x.cc
//   AIRI_SELECT_KERNELS(kXKernels, active_isa()).run(in, out);
//
// A kernel source keeps everything else in an anonymous namespace and calls no
// standard-library template out of line: the linker merges equal inline functions of
// all objects, and might keep one that was compiled for a newer processor.

namespace airi::cpu {

// In order of preference; every one implies the ones before it.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The best instruction set that processor and operating system support. Pure.
[[nodiscard]] Isa detect_isa();

// What kernels chosen from now on use: detect_isa(), unless AIRI_CPU_ISA names a
// lesser one or set_isa was called. Packed weights keep the one they were packed under.
// Throws InvalidArgument when AIRI_CPU_ISA names an unknown or unsupported one.
[[nodiscard]] Isa active_isa();

// Throws InvalidArgument when this machine lacks `isa`. Safe from any thread.
void set_isa(Isa isa);

[[nodiscard]] std::string_view isa_name(Isa isa);

// Throws InvalidArgument naming the accepted names.
[[nodiscard]] Isa parse_isa(std::string_view name);

}  // namespace airi::cpu

#ifdef AIRI_X86_KERNELS
#define AIRI_DECLARE_KERNELS(type, name) \
  namespace portable {                   \
  extern const type name;                \
  }                                      \
  namespace avx2 {                       \
  extern const type name;                \
  }                                      \
  namespace avx512 {                     \
  extern const type name;                \
  }                                      \
  namespace avx512_bf16 {                \
  extern const type name;                \
  }                                      \
  static_assert(true)
#define AIRI_SELECT_KERNELS(name, isa)                                     \
  ((isa) == ::airi::cpu::Isa::kAvx512Bf16 ? ::airi::cpu::avx512_bf16::name \
   : (isa) == ::airi::cpu::Isa::kAvx512   ? ::airi::cpu::avx512::name      \
   : (isa) == ::airi::cpu::Isa::kAvx2     ? ::airi::cpu::avx2::name        \
                                          : ::airi::cpu::portable::name)
#else
#define AIRI_DECLARE_KERNELS(type, name) \
  namespace portable {                   \
  extern const type name;                \
  }                                      \
  static_assert(true)
#define AIRI_SELECT_KERNELS(name, isa) (static_cast<void>(isa), ::airi::cpu::portable::name)
#endif
