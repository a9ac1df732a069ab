// Which instruction set the CPU kernels use. Compiled once, for the baseline.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "ops/common.h"

namespace sparrow {
namespace {

constexpr Isa kIsas[] = {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512_bf16};
constexpr const char* kNames[] = {"generic", "avx2", "avx512", "avx512_bf16"};

Isa widest() {
#if defined(SPARROW_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::generic;
}

// With Intel's bfloat16 instruction products of nine rows and more take 1.3 to 1.6 times as long as without it (Emerald
// Rapids, bench/results/cpu_ops_intel.json); on AMD the two have not been compared.
Isa fastest() {
  const Isa isa = widest();
#if defined(SPARROW_X86)
  if (isa == Isa::avx512_bf16 && __builtin_cpu_is("intel")) return Isa::avx512;
#endif
  return isa;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{fastest()};
  return isa;
}

}  // namespace

Isa cpu_isa() { return chosen().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool set_cpu_isa(const char* name) {
  for (Isa isa : kIsas) {
    if (std::strcmp(name, isa_name(isa)) == 0 && isa <= widest()) {
      chosen().store(isa, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace sparrow
