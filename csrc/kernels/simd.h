// SIMD vectors by the compilers' vector extension (GCC, Clang): as wide as the instruction set this file is compiled
// for. Included by *_cpu.cpp only. Everything is in that set's namespace, see cpu_isa.h.
//
// In the kernels S is the type that a tensor's elements are stored in, and T = Compute<S> the one they are computed in:
// float for bfloat16, else S itself. Loads widen, stores and assignments round.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "common.h"

#if defined(__AVX512F__)
#define ATU_VECTOR_BYTES 64
#elif defined(__AVX__)
#define ATU_VECTOR_BYTES 32
#else
#define ATU_VECTOR_BYTES 16
#endif

namespace atu::ATU_ISA {

typedef float VecF __attribute__((vector_size(ATU_VECTOR_BYTES)));
typedef double VecD __attribute__((vector_size(ATU_VECTOR_BYTES)));
typedef int32_t VecI32 __attribute__((vector_size(ATU_VECTOR_BYTES)));
typedef int64_t VecI64 __attribute__((vector_size(ATU_VECTOR_BYTES)));
typedef uint32_t VecU32 __attribute__((vector_size(ATU_VECTOR_BYTES)));
typedef uint16_t VecU16 __attribute__((vector_size(ATU_VECTOR_BYTES / 2)));  // as many lanes

// The upper half of a float. To it: to nearest, ties to even; a NaN stays one.
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float value) { *this = value; }
  BFloat16& operator=(float value) {
    const uint32_t b = __builtin_bit_cast(uint32_t, value), rounded = b + 0x7fff + (b >> 16 & 1);
    bits = uint16_t((value != value ? b | 0x400000 : rounded) >> 16);
    return *this;
  }
  operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
};

template <typename S>
struct Simd;
template <>
struct Simd<float> {
  using T = float;
  using V = VecF;
  using I = VecI32;
  using Int = int32_t;
};
template <>
struct Simd<double> {
  using T = double;
  using V = VecD;
  using I = VecI64;
  using Int = int64_t;
};
template <>
struct Simd<BFloat16> : Simd<float> {};
template <typename S>
using Compute = typename Simd<S>::T;
template <typename S>
using Vec = typename Simd<S>::V;
template <typename S>
constexpr int kLanes = ATU_VECTOR_BYTES / sizeof(Compute<S>);

template <typename T>
static inline Vec<T> splat(T value) {
  return Vec<T>{} + value;
}

template <typename T>
static inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T>
static inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// All bits set in the first `count` lanes.
template <typename T>
static inline __m256i first_lanes(int count) {
  typename Simd<T>::I lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return __m256i(lane < typename Simd<T>::Int(count));
}
#endif

// The first `count` < kLanes elements; the others read as 0.
template <typename T>
static inline Vec<T> load_partial(const T* p, int count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p));
  } else {
    return Vec<T>(_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), p));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm256_maskload_ps(p, first_lanes<T>(count)));
  } else {
    return Vec<T>(_mm256_maskload_pd(p, first_lanes<T>(count)));
  }
#else
  Vec<T> v{};
#pragma GCC unroll 4
  for (int i = 0; i < kLanes<T> - 1; ++i) {
    if (i < count) v[i] = p[i];
  }
  return v;
#endif
}

template <typename T>
static inline void store_partial(T* p, Vec<T> v, int count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), __m512(v));
  } else {
    _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), __m512d(v));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    _mm256_maskstore_ps(p, first_lanes<T>(count), __m256(v));
  } else {
    _mm256_maskstore_pd(p, first_lanes<T>(count), __m256d(v));
  }
#else
#pragma GCC unroll 4
  for (int i = 0; i < kLanes<T> - 1; ++i) {
    if (i < count) p[i] = v[i];
  }
#endif
}

static inline VecF widen(VecU16 bits) {
  return VecF(__builtin_convertvector(bits, VecU32) << 16);
}

static inline VecU16 narrow(VecF v) {
#if defined(__AVX512BF16__)  // which takes numbers below the smallest normal one as 0
  return VecU16(_mm512_cvtneps_pbh(__m512(v)));
#else
  const VecU32 b = VecU32(v), rounded = b + 0x7fff + (b >> 16 & 1);
  return __builtin_convertvector((v != v ? b | 0x400000 : rounded) >> 16, VecU16);
#endif
}

static inline VecF load(const BFloat16* p) {
  VecU16 bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return widen(bits);
}

static inline void store(BFloat16* p, VecF v) {
  const VecU16 bits = narrow(v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

static inline VecF load_partial(const BFloat16* p, int count) {
#if defined(__AVX512F__)
  return widen(VecU16(_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p)));
#else
  VecU16 bits{};
#pragma GCC unroll 8
  for (int i = 0; i < kLanes<float> - 1; ++i) {
    if (i < count) bits[i] = p[i].bits;
  }
  return widen(bits);
#endif
}

static inline void store_partial(BFloat16* p, VecF v, int count) {
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), __m256i(narrow(v)));
#else
  const VecU16 bits = narrow(v);
#pragma GCC unroll 8
  for (int i = 0; i < kLanes<float> - 1; ++i) {
    if (i < count) p[i].bits = bits[i];
  }
#endif
}

// How much of a vector a load or a store is about: all of it, or (an int) its first elements.
struct Full {};

template <typename T>
static inline Vec<T> load(const T* p, Full) {
  return load(p);
}
template <typename T>
static inline Vec<T> load(const T* p, int count) {
  return load_partial(p, count);
}
template <typename T>
static inline void store(T* p, Vec<T> v, Full) {
  store(p, v);
}
template <typename T>
static inline void store(T* p, Vec<T> v, int count) {
  store_partial(p, v, count);
}

// body(i, Full) for the whole vectors of [begin, end), then body(i, count) for what is left.
template <typename T, typename Body>
static inline void for_vectors(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) body(i, Full{});
  if (i < end) body(i, int(end - i));
}

// Store past the caches to p, aligned to what a vector takes there: for outputs too large to be read back from a cache,
// it saves reading each line before it is written. stream_fence() before other threads may read.
template <typename T>
static inline void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_stream_ps(p, __m512(v));
  } else {
    _mm512_stream_pd(p, __m512d(v));
  }
#elif defined(__AVX__)
  if constexpr (sizeof(T) == 4) {
    _mm256_stream_ps(p, __m256(v));
  } else {
    _mm256_stream_pd(p, __m256d(v));
  }
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) {
    _mm_stream_ps(p, __m128(v));
  } else {
    _mm_stream_pd(p, __m128d(v));
  }
#else
  store(p, v);
#endif
}

static inline void stream(BFloat16* p, VecF v) {
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), __m256i(narrow(v)));
#elif defined(__AVX__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), __m128i(narrow(v)));
#elif defined(__SSE2__) && defined(__x86_64__)
  _mm_stream_si64(reinterpret_cast<long long*>(p), __builtin_bit_cast(long long, narrow(v)));
#else
  store(p, v);
#endif
}

static inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Bytes that a vector takes in a tensor.
template <typename S>
constexpr int kStoredBytes = kLanes<S> * sizeof(S);

// Elements from p to the next address aligned to them.
template <typename S>
static inline int64_t to_aligned(const S* p) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(p) % kStoredBytes<S>;
  return past == 0 ? 0 : int64_t((kStoredBytes<S> - past) / sizeof(S));
}

// The even, and the odd, elements of the 2 kLanes in (a, b); and their inverse, a0 b0 a1 b1 ... in two vectors.
template <typename T>
struct Pair {
  Vec<T> first, second;
};

#if defined(__clang__) || __GNUC__ >= 12
template <typename T, size_t... I>
static inline Pair<T> deinterleave(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
  return {__builtin_shufflevector(a, b, (2 * I)...), __builtin_shufflevector(a, b, (2 * I + 1)...)};
}
template <typename T, size_t... I>
static inline Pair<T> interleave(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
  constexpr size_t n = sizeof...(I);
  return {__builtin_shufflevector(a, b, (I / 2 + I % 2 * n)...),
          __builtin_shufflevector(a, b, (n / 2 + I / 2 + I % 2 * n)...)};
}
#else
template <typename T, size_t... I>
static inline Pair<T> deinterleave(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
  using M = typename Simd<T>::I;
  return {__builtin_shuffle(a, b, M{(2 * I)...}), __builtin_shuffle(a, b, M{(2 * I + 1)...})};
}
template <typename T, size_t... I>
static inline Pair<T> interleave(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
  using M = typename Simd<T>::I;
  constexpr size_t n = sizeof...(I);
  return {__builtin_shuffle(a, b, M{(I / 2 + I % 2 * n)...}),
          __builtin_shuffle(a, b, M{(n / 2 + I / 2 + I % 2 * n)...})};
}
#endif
template <typename T>
static inline Pair<T> deinterleave(Vec<T> a, Vec<T> b) {
  return deinterleave<T>(a, b, std::make_index_sequence<kLanes<T>>{});
}
template <typename T>
static inline Pair<T> interleave(Vec<T> a, Vec<T> b) {
  return interleave<T>(a, b, std::make_index_sequence<kLanes<T>>{});
}

// Of the lanes, pairwise.
template <typename T>
static inline T sum(Vec<T> v) {
#pragma GCC unroll 4
  for (int n = kLanes<T>; n > 1; n /= 2) {
    const Pair<T> halves = deinterleave<T>(v, v);
    v = halves.first + halves.second;
  }
  return v[0];
}

// kLanes vectors as the rows of a matrix: its columns. Each of the log2(kLanes) perfect shuffles rotates the bits of
// (row, lane) by one.
template <typename T>
static inline void transpose(Vec<T>* rows) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 4
  for (int step = 1; step < n; step *= 2) {
    Vec<T> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      const Pair<T> both = interleave<T>(rows[i], rows[i + n / 2]);
      next[2 * i] = both.first;
      next[2 * i + 1] = both.second;
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

// Outputs of at least this many bytes are written past the caches.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Uninitialised memory, aligned to a cache line. Allocate before a parallel region: it may throw std::bad_alloc.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(nullptr) {
    if (count <= 0) return;
    data_ = static_cast<T*>(std::aligned_alloc(64, size_t(ceil_div(count * int64_t(sizeof(T)), 64) * 64)));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

// The scratch of all threads in one allocation, `count` elements a thread.
template <typename T>
class ThreadScratch {
 public:
  ThreadScratch(int64_t count, int threads) : stride_(ceil_div(count, kLine) * kLine), memory_(stride_ * threads) {}
  T* of(int thread) const { return memory_.data() + thread * stride_; }

 private:
  static constexpr int64_t kLine = ceil_div(64, int64_t(sizeof(T)));  // no two threads write to one cache line
  int64_t stride_;
  Scratch<T> memory_;
};

// f.operator()<S>() for the element type known at run time.
template <typename F>
static inline void with_type(DType dtype, const F& f) {
#if !defined(__AVX512BF16__)  // else it is known, see cpu_isa.h
  if (dtype == DType::f64) return f.template operator()<double>();
  if (dtype == DType::f32) return f.template operator()<float>();
#endif
  if (dtype == DType::bf16) f.template operator()<BFloat16>();
}

}  // namespace atu::ATU_ISA
