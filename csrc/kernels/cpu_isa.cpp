#include "cpu_isa.h"

#include <cstdlib>
#include <cstring>

namespace atu {
namespace {

constexpr const char* kNames[kCpuIsas] = {"baseline", "avx2", "avx512", "avx512_bf16"};

CpuIsa detect() {
  if (const char* wanted = std::getenv("ATU_CPU_ISA")) {
    for (int i = 0; i < kCpuIsas; ++i) {
      if (std::strcmp(wanted, kNames[i]) == 0 && cpu_isa_supported(CpuIsa(i))) return CpuIsa(i);
    }
  }
  int best = kCpuIsas - 1;
  while (!cpu_isa_supported(CpuIsa(best))) --best;  // the baseline is
  return CpuIsa(best);
}

CpuIsa& chosen() {
  static CpuIsa isa = detect();
  return isa;
}

}  // namespace

bool cpu_isa_supported(CpuIsa isa) {
#if defined(__x86_64__)
  // These builtins ask the operating system too (XGETBV): registers it does not save do not count.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
#if defined(ATU_HAS_AVX512_BF16)
  if (isa == CpuIsa::avx512_bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  if (isa == CpuIsa::avx512) return avx512;
  if (isa == CpuIsa::avx2) return avx2;
#endif
  return isa == CpuIsa::baseline;
}

CpuIsa cpu_isa() {
  return chosen();
}

bool set_cpu_isa(CpuIsa isa) {
  if (!cpu_isa_supported(isa)) return false;
  chosen() = isa;
  return true;
}

const char* cpu_isa_name(CpuIsa isa) {
  return kNames[int(isa)];
}

}  // namespace atu
