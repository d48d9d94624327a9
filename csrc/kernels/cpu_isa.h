// Which instruction set the CPU kernels use, and how a *_cpu.cpp is compiled for each of them.
//
// A CPU source puts everything it defines into `namespace atu::ATU_ISA` (CMake defines ATU_ISA as baseline, avx2,
// avx512 or avx512_bf16 and compiles the file once for each; the last, where the compiler knows it, for bfloat16 alone)
// and ends with
//     ATU_CPU_ENTRY(NAME_cpu, NAMEParams)
// at global scope. In the baseline object that defines atu::NAME_cpu, which calls the copy for the chosen set.
#pragma once

namespace atu {

enum class CpuIsa : int { baseline = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };
constexpr int kCpuIsas = 4;

// The best set of this CPU, or the environment variable ATU_CPU_ISA where it names a supported one.
CpuIsa cpu_isa();
bool cpu_isa_supported(CpuIsa isa);
// For tests: false, and no change, where this CPU lacks the set. Not to be called while a kernel runs.
bool set_cpu_isa(CpuIsa isa);
const char* cpu_isa_name(CpuIsa isa);

}  // namespace atu

#if !defined(ATU_ISA_baseline)
#define ATU_CPU_ENTRY(NAME, PARAMS)
#elif defined(__x86_64__)
#if !defined(ATU_HAS_AVX512_BF16)
#define ATU_AVX512_BF16 avx512
#else
#define ATU_AVX512_BF16 avx512_bf16
#endif
#define ATU_CPU_ENTRY(NAME, PARAMS)                                                 \
  namespace atu::avx2 {                                                             \
  void NAME(const PARAMS&);                                                         \
  }                                                                                 \
  namespace atu::avx512 {                                                           \
  void NAME(const PARAMS&);                                                         \
  }                                                                                 \
  namespace atu::ATU_AVX512_BF16 {                                                  \
  void NAME(const PARAMS&);                                                         \
  }                                                                                 \
  void atu::NAME(const PARAMS& p) {                                                 \
    switch (cpu_isa()) {                                                            \
      case CpuIsa::avx512_bf16:                                                     \
        return p.dtype == DType::bf16 ? ATU_AVX512_BF16::NAME(p) : avx512::NAME(p); \
      case CpuIsa::avx512:                                                          \
        return avx512::NAME(p);                                                     \
      case CpuIsa::avx2:                                                            \
        return avx2::NAME(p);                                                       \
      case CpuIsa::baseline:                                                        \
        return baseline::NAME(p);                                                   \
    }                                                                               \
  }
#else
#define ATU_CPU_ENTRY(NAME, PARAMS) \
  void atu::NAME(const PARAMS& p) { \
    baseline::NAME(p);              \
  }
#endif
