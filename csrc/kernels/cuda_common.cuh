// What every .cu file shares: launching, error checks, 16-bit conversions, and wrappers round the PTX instructions
// that CUDA C++ has no name for. With ATU_EMULATED the same sources compile as C++ for the CPU (docs/emulation.md).
//
// Rules for kernels, so that both compilers take them:
//   - launch with ATU_LAUNCH(kernel, grid, block, shared_bytes, stream, args...); a template kernel in parentheses:
//     ATU_LAUNCH((scale<float, 4>), ...). It throws std::runtime_error when the launch fails.
//   - shared memory: ATU_SHARED(float, tile, [32][33]); and ATU_DYNAMIC_SHARED(unsigned char, smem);
//   - inline PTX only here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef ATU_EMULATED
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace atu::cuda {

#ifdef ATU_EMULATED

#define ATU_LOCATION , emu::Loc loc = emu::Loc::current()
#define ATU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), emu::launch(#kernel, kernel, grid, block, shared_bytes, __VA_ARGS__))
#define ATU_SHARED(type, name, dims)                                   \
  static const char name##_key = 0;                                    \
  typedef type name##_array dims;                                      \
  name##_array& name = *static_cast<name##_array*>(emu::static_shared( \
      &name##_key, #name, sizeof(name##_array), alignof(name##_array) < 16 ? 16 : alignof(name##_array)))
#define ATU_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emu::dynamic_shared())

// Lets `kernel` take more than 48 KiB of dynamic shared memory.
template <class Kernel>
void allow_dynamic_shared(Kernel* kernel, std::size_t bytes) {
  emu::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), bytes);
}

// Why `kernel` cannot run on the current device; empty where it can.
template <class Kernel>
std::string obstacle(Kernel*) {
  return "";
}

#else

#define ATU_LOCATION
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

#define ATU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                         \
  do {                                                                                     \
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
    ::atu::cuda::check(cudaGetLastError(), "launch of " #kernel);                          \
  } while (false)
#define ATU_SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define ATU_DYNAMIC_SHARED(type, name)                          \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* name = reinterpret_cast<type*>(name##_bytes)

template <class Kernel>
void allow_dynamic_shared(Kernel* kernel, std::size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
}

template <class Kernel>
std::string obstacle(Kernel* kernel) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);  // loads it, and needs a driver
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // or the next launch would report it
  return cudaGetErrorString(status);
}

#endif

// ---- 16-bit floats ----------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float v) {
  return v;
}
__device__ __forceinline__ float to_float(__half v) {
  return __half2float(v);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 v) {
  return __bfloat162float(v);
}
__device__ __forceinline__ double to_float(double v) {
  return v;
}

template <class T>
struct FromFloat;
template <>
struct FromFloat<float> {
  static __device__ __forceinline__ float convert(float v) { return v; }
};
template <>
struct FromFloat<double> {
  static __device__ __forceinline__ double convert(double v) { return v; }
};
template <>
struct FromFloat<__half> {
  static __device__ __forceinline__ __half convert(float v) { return __float2half_rn(v); }
};
template <>
struct FromFloat<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 convert(float v) { return __float2bfloat16_rn(v); }
};
// Rounds an accumulator value to T, to nearest even.
template <class T, class A>
__device__ __forceinline__ T from_float(A v) {
  return FromFloat<T>::convert(v);
}

// The type sums are kept in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

// ---- cp.async, ldmatrix, mma (compute capability 8.0 and later) -------------------------------------------------

// Starts a copy of Bytes (4, 8 or 16) from global to shared memory; both must be aligned to Bytes. With valid false
// zeros are written and `global` is not read.
template <int Bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true ATU_LOCATION) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const int source_bytes = valid ? Bytes : 0;
#ifdef ATU_EMULATED
  emu::cp_async(shared, global, Bytes, source_bytes, loc);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const auto target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
  }
#else
  // Turing has no asynchronous copy: copy through registers.
  using Word = std::conditional_t<Bytes == 16, uint4, std::conditional_t<Bytes == 8, uint2, unsigned>>;
  *static_cast<Word*>(shared) = valid ? *static_cast<const Word*>(global) : Word{};
#endif
}

// Closes the group of copies started since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#ifdef ATU_EMULATED
  emu::cp_async_commit();
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most Groups of this thread's groups are under way. Other threads see the data after a barrier.
template <int Groups>
__device__ __forceinline__ void cp_async_wait() {
#ifdef ATU_EMULATED
  emu::cp_async_wait(Groups);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
#endif
}

// Loads Matrices (1, 2, 4) 8x8 matrices of 16-bit elements. Lane 8 m + r gives the address of row r of matrix m
// (16 bytes, aligned). Lane l gets in registers[m] elements (row l / 4, columns 2 (l % 4) and + 1); Transposed
// exchanges row and column.
template <int Matrices, bool Transposed = false>
__device__ __forceinline__ void ldmatrix(std::uint32_t (&registers)[Matrices], const void* row ATU_LOCATION) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
#ifdef ATU_EMULATED
  emu::ldmatrix(registers, row, Matrices, Transposed, loc);
#else
  const auto source = static_cast<unsigned>(__cvta_generic_to_shared(row));
  std::uint32_t* r = registers;
  if constexpr (Matrices == 1 && !Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(source) : "memory");
  } else if constexpr (Matrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(source) : "memory");
  } else if constexpr (Matrices == 2 && !Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(source)
                 : "memory");
  } else if constexpr (Matrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(source)
                 : "memory");
  } else if constexpr (!Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(source)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(source)
                 : "memory");
  }
#endif
}

// d [16 x 8] += a [16 x 16] b [16 x 8], 16-bit inputs of type T (__half, __nv_bfloat16), float32 accumulation.
// With g = lane / 4, t = lane % 4: a[0], a[1] hold rows g, g + 8 at columns 2 t, 2 t + 1; a[2], a[3] the same at
// columns + 8; b[0], b[1] rows 2 t, 2 t + 1 and + 8 of column g; d[0..1] row g, d[2..3] row g + 8, columns 2 t, + 1.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                             const std::uint32_t (&b)[2] ATU_LOCATION) {
  constexpr bool is_half = std::is_same_v<T, __half>;
  static_assert(is_half || std::is_same_v<T, __nv_bfloat16>);
#ifdef ATU_EMULATED
  emu::mma(d, a, b, is_half ? emu::MmaKind::f16_k16 : emu::MmaKind::bf16_k16, loc);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (is_half) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  __trap();  // the dispatcher never picks the tensor-core kernels below compute capability 8.0
#endif
}

// d [16 x 8] += a [16 x 8] b [8 x 8] in tf32 (float32 words of which the hardware reads the upper 19 bits).
// a[0], a[1]: rows g, g + 8 of column t; a[2], a[3]: of column t + 4; b[0], b[1]: rows t, t + 4 of column g.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2] ATU_LOCATION) {
#ifdef ATU_EMULATED
  emu::mma(d, a, b, emu::MmaKind::tf32_k8, loc);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// float32 to tf32, to nearest, ties away from zero.
__device__ __forceinline__ std::uint32_t to_tf32(float v) {
#ifdef ATU_EMULATED
  const std::uint32_t bits = __float_as_uint(v);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
#else
  return __float_as_uint(v);
#endif
}

}  // namespace atu::cuda
