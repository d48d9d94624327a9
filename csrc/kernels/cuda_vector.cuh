// Runs of 16 bytes of a dense array, in accumulator precision: how the elementwise kernels read and write.
#pragma once

#include <cstring>

#include "cuda_common.cuh"

namespace atu::cuda {

template <class T>
constexpr int kVector = 16 / int(sizeof(T));

template <class T>
struct alignas(16) Pack {
  T v[kVector<T>];
};

// *p = pack in one store of 16 bytes, to global memory aligned to it. By name: nvcc takes an assignment of a struct
// apart, into a store for each element or two, each of which touches all of the warp's sectors.
template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) {
  uint4 word;
  memcpy(&word, &pack, 16);
  __stwb(reinterpret_cast<uint4*>(p), word);
}

// Where the vectors of arrays of `numel` elements lie: vector k covers elements [first + k V, first + (k + 1) V) cut to
// [0, numel). first is in (-V, 0], so that vectors are aligned to 16 bytes where all arrays are misaligned alike; where
// they are not, `aligned` is false and vectors are accessed by elements.
struct VectorGrid {
  int64_t numel, first, count;
  bool aligned;
};

template <class T, int Arrays>
__host__ __device__ __forceinline__ VectorGrid vector_grid(int64_t numel, const void* const (&arrays)[Arrays]) {
  constexpr int V = kVector<T>;
  VectorGrid g{numel, 0, 0, true};
  int64_t offset = -1;
  for (const void* a : arrays) {
    if (a == nullptr) continue;
    const int64_t o = int64_t(reinterpret_cast<uintptr_t>(a) % 16 / sizeof(T));
    if (offset >= 0 && o != offset) g.aligned = false;
    offset = o;
  }
  if (g.aligned && offset > 0) g.first = -offset;
  g.count = (numel - g.first + V - 1) / V;
  return g;
}

// Elements [i, i + V) of p in accumulator precision; those outside [0, numel) are 0. full: i is in range and aligned.
template <class T, class A>
__device__ __forceinline__ void load_vector(const T* p, int64_t i, int64_t numel, bool full, A (&out)[kVector<T>]) {
  if (full) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p + i);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) out[j] = to_float(pack.v[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) out[j] = i + j >= 0 && i + j < numel ? A(to_float(p[i + j])) : A(0);
  }
}

template <class T, class A>
__device__ __forceinline__ void store_vector(T* p, int64_t i, int64_t numel, bool full, const A (&in)[kVector<T>]) {
  if (full) {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) pack.v[j] = from_float<T>(in[j]);
    store_pack(p + i, pack);
  } else {
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      if (i + j >= 0 && i + j < numel) p[i + j] = from_float<T>(in[j]);
    }
  }
}

}  // namespace atu::cuda
