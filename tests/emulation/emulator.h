// CUDA's execution model for the CPU, as seen from a kernel: csrc/kernels/*.cu compile against this in place of the
// CUDA headers. Threads are fibers of one operating-system thread (runtime.cpp); memory accesses are checked
// (memory.cpp). See docs/emulation.md.
#pragma once

#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "types.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__
#define __restrict__
#define __shared__ static_assert(false, "use ATU_SHARED or ATU_DYNAMIC_SHARED");

using cudaStream_t = void*;

namespace emu {

using Loc = std::source_location;

// One thread's built-in variables. They are constant while a fiber runs, which the attribute tells the compiler.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();

void* static_shared(const void* key, const char* name, std::size_t bytes, std::size_t alignment);
void* dynamic_shared();
void allow_dynamic_shared(const void* kernel, std::size_t bytes);

void sync_threads(Loc loc);
int sync_threads_count(int predicate, Loc loc);
void sync_warp(unsigned mask, Loc loc);
std::uint64_t shuffle(unsigned mask, std::uint64_t value, int lane, int width, int kind, Loc loc);
unsigned ballot(unsigned mask, bool predicate, Loc loc);

// Runs change(&value at address, operand) as one atomic step; returns the old value.
void atomic_access(void* address, std::size_t bytes);
// A store of `bytes` in one, whatever the compiler makes of the assignment.
void store_access(void* address, std::size_t bytes);

void cp_async(void* shared, const void* global, int bytes, int source_bytes, Loc loc);
void cp_async_commit();
void cp_async_wait(int groups_left);
void ldmatrix(std::uint32_t* registers, const void* row, int matrices, bool transposed, Loc loc);
enum class MmaKind { f16_k16, bf16_k16, tf32_k8 };
void mma(float* d, const std::uint32_t* a, const std::uint32_t* b, MmaKind kind, Loc loc);

[[noreturn]] void fault(const char* what);

struct Launch {
  const char* kernel_name;
  const void* kernel;
  dim3 grid, block;
  std::size_t dynamic_shared;
  void (*invoke)(const Launch&);
  const void* arguments;
};
void run(const Launch& launch);

// Calls the kernel with copies of its parameters. Not checked itself: it reads what the launcher holds.
template <class... P, std::size_t... I>
__attribute__((no_sanitize("thread"))) void invoke(const Launch& l, std::index_sequence<I...>) {
  const auto& p = *static_cast<const std::tuple<P...>*>(l.arguments);
  reinterpret_cast<void (*)(P...)>(const_cast<void*>(l.kernel))(std::get<I>(p)...);
}
template <class... P>
__attribute__((no_sanitize("thread"))) void invoke(const Launch& l) {
  invoke<P...>(l, std::index_sequence_for<P...>{});
}

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, A&&... args) {
  const std::tuple<P...> parameters(std::forward<A>(args)...);
  run({name, reinterpret_cast<const void*>(kernel), grid, block, shared, &invoke<P...>, &parameters});
}

}  // namespace emu

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_size())
#define gridDim (emu::grid_size())
constexpr int warpSize = 32;

inline void __syncthreads(emu::Loc loc = emu::Loc::current()) {
  emu::sync_threads(loc);
}
inline int __syncthreads_count(int p, emu::Loc loc = emu::Loc::current()) {
  return emu::sync_threads_count(p, loc);
}
inline int __syncthreads_or(int p, emu::Loc loc = emu::Loc::current()) {
  return emu::sync_threads_count(p, loc) > 0;
}
inline int __syncthreads_and(int p, emu::Loc loc = emu::Loc::current()) {
  const dim3 b = emu::block_size();
  return emu::sync_threads_count(p, loc) == static_cast<int>(b.x * b.y * b.z);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, emu::Loc loc = emu::Loc::current()) {
  emu::sync_warp(mask, loc);
}

namespace emu {
enum ShuffleKind { shuffle_index, shuffle_up, shuffle_down, shuffle_xor };
template <class T>
T shuffle_value(unsigned mask, T v, int lane, int width, ShuffleKind kind, Loc loc) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  bits = shuffle(mask, bits, lane, width, kind, loc);
  T result;
  std::memcpy(&result, &bits, sizeof(T));
  return result;
}
}  // namespace emu

template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, emu::Loc loc = emu::Loc::current()) {
  return emu::shuffle_value(mask, v, lane, width, emu::shuffle_index, loc);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, emu::Loc loc = emu::Loc::current()) {
  return emu::shuffle_value(mask, v, static_cast<int>(delta), width, emu::shuffle_up, loc);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, emu::Loc loc = emu::Loc::current()) {
  return emu::shuffle_value(mask, v, static_cast<int>(delta), width, emu::shuffle_down, loc);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, emu::Loc loc = emu::Loc::current()) {
  return emu::shuffle_value(mask, v, lane_mask, width, emu::shuffle_xor, loc);
}
inline unsigned __ballot_sync(unsigned mask, int p, emu::Loc loc = emu::Loc::current()) {
  return emu::ballot(mask, p != 0, loc);
}
inline int __any_sync(unsigned mask, int p, emu::Loc loc = emu::Loc::current()) {
  return emu::ballot(mask, p != 0, loc) != 0;
}
inline int __all_sync(unsigned mask, int p, emu::Loc loc = emu::Loc::current()) {
  return emu::ballot(mask, p != 0, loc) == mask;
}

// Fibers are not preempted, so a plain read-modify-write is atomic; the check marks it as such.
#define EMU_ATOMIC(name, expression)                                                     \
  template <class T>                                                                     \
  __attribute__((no_sanitize("thread"))) T name(T* address, std::type_identity_t<T> v) { \
    emu::atomic_access(address, sizeof(T));                                              \
    const T old = *address;                                                              \
    *address = (expression);                                                             \
    return old;                                                                          \
  }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicMax, old < v ? v : old)
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicAnd, old& v)
#undef EMU_ATOMIC
template <class T>
__attribute__((no_sanitize("thread"))) T atomicCAS(T* address, std::type_identity_t<T> compare,
                                                   std::type_identity_t<T> v) {
  emu::atomic_access(address, sizeof(T));
  const T old = *address;
  if (old == compare) *address = v;
  return old;
}

template <class T>
__attribute__((no_sanitize("thread"))) void __stwb(T* address, T v) {
  emu::store_access(address, sizeof(T));
  *address = v;
}

// clang-format off
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { emu::fault("__trap()"); }
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T> void __stcg(T* p, T v) { *p = v; }
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((std::uint64_t{a} * b) >> 32); }
inline float rsqrtf(float v) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(v))); }
inline double rsqrt(double v) { return 1.0 / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
using std::max;
using std::min;
// clang-format on
