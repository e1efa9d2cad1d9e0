#include "cpu/isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/check.h"

#ifdef AIRI_X86_KERNELS
#include <cpuid.h>
#endif

namespace airi::cpu {
namespace {

#ifdef AIRI_X86_KERNELS

struct CpuidLeaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(unsigned leaf, unsigned subleaf) {
  CpuidLeaf out;
  if (__get_cpuid_max(0, nullptr) < leaf) return out;
  __cpuid_count(leaf, subleaf, out.eax, out.ebx, out.ecx, out.edx);
  return out;
}

bool has(unsigned reg, int bit) { return ((reg >> bit) & 1U) != 0; }

// XCR0: which register files the operating system saves on a context switch.
std::uint64_t xcr0() {
  std::uint32_t lo = 0;
  std::uint32_t hi = 0;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<std::uint64_t>(hi) << 32) | lo;
}

Isa detect_x86() {
  constexpr std::uint64_t kYmmState = 0x6;   // SSE and AVX halves
  constexpr std::uint64_t kZmmState = 0xe6;  // and opmasks, upper zmm halves, zmm16-31
  const CpuidLeaf l1 = cpuid(1, 0);
  const bool osxsave = has(l1.ecx, 27);
  if (!osxsave || !has(l1.ecx, 28) || (xcr0() & kYmmState) != kYmmState) return Isa::kPortable;
  const CpuidLeaf l7 = cpuid(7, 0);
  const bool fma = has(l1.ecx, 12);
  const bool f16c = has(l1.ecx, 29);
  if (!has(l7.ebx, 5) || !fma || !f16c) return Isa::kPortable;
  const bool avx512 = has(l7.ebx, 16) && has(l7.ebx, 17) && has(l7.ebx, 30) && has(l7.ebx, 31);
  if (!avx512 || (xcr0() & kZmmState) != kZmmState) return Isa::kAvx2;
  const bool has_subleaf_1 = l7.eax >= 1;
  return has_subleaf_1 && has(cpuid(7, 1).eax, 5) ? Isa::kAvx512Bf16 : Isa::kAvx512;
}

#endif

constexpr Isa kAll[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

void check_supported(Isa isa) {
  if (isa <= detect_isa()) return;
  throw InvalidArgument("isa '" + std::string(isa_name(isa)) +
                        "' is not supported by this machine; its best is '" +
                        std::string(isa_name(detect_isa())) + "'");
}

Isa initial_isa() {
  const char* wanted = std::getenv("AIRI_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return detect_isa();
  const Isa isa = parse_isa(wanted);
  check_supported(isa);
  return isa;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

Isa detect_isa() {
#ifdef AIRI_X86_KERNELS
  static const Isa isa = detect_x86();
  return isa;
#else
  return Isa::kPortable;
#endif
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_isa(Isa isa) {
  check_supported(isa);
  active().store(isa, std::memory_order_relaxed);
}

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  AIRI_CHECK(false) << "unknown isa " << static_cast<int>(isa);
  return "";
}

Isa parse_isa(std::string_view name) {
  for (const Isa isa : kAll) {
    if (name == isa_name(isa)) return isa;
  }
  throw InvalidArgument("isa '" + std::string(name) +
                        "' is unknown; accepted: portable, avx2, avx512, avx512_bf16");
}

}  // namespace airi::cpu
