// What the passes (modulated_conv2d_cuda.cu, modulated_conv2d_grad_cuda.cu) and the GEMM
// (modulated_conv2d_gemm_cuda.cu) share: 16-byte vectors in float32 registers, and the epilogue's arithmetic.
#pragma once

#include <stdexcept>
#include <string>

#include "activation_cuda.cuh"
#include "bias_act.h"
#include "common.h"
#include "cuda_common.cuh"
#include "cuda_vector.cuh"
#include "modulated_conv2d.h"

namespace atu::cuda {

static inline bool aligned16(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

// out[j] = p[j] for j < count, else `fill`; in 16-byte accesses where `wide` says that p is aligned to them.
template <class T, int V>
__device__ __forceinline__ void load(float (&out)[V], const T* p, int count, bool wide, float fill = 0.f) {
  static_assert(V % kVector<T> == 0);
  if (wide && count >= V) {
#pragma unroll
    for (int i = 0; i < V; i += kVector<T>) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p + i);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) out[i + j] = to_float(pack.v[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = j < count ? to_float(p[j]) : fill;
  }
}

template <class T, int V>
__device__ __forceinline__ void store(T* p, const float (&in)[V], int count, bool wide) {
  if (wide && count >= V) {
#pragma unroll
    for (int i = 0; i < V; i += kVector<T>) {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) pack.v[j] = from_float<T>(in[i + j]);
      store_pack(p + i, pack);
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (j < count) p[j] = from_float<T>(in[j]);
    }
  }
}

template <int V>
__device__ __forceinline__ void fill(float (&out)[V], float value) {
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = value;
}

struct Finish {
  Act act;
  float alpha, gain, clamp;  // clamp < 0: none
};

// v -> clamp(gain act(v))
template <int V>
__device__ __forceinline__ void finish(const Finish& f, float (&v)[V]) {
  act_value(f.act, f.alpha, v, v);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    v[j] *= f.gain;
    // Comparisons, not fminf: a NaN stays a NaN.
    if (f.clamp >= 0.f) v[j] = v[j] > f.clamp ? f.clamp : v[j] < -f.clamp ? -f.clamp : v[j];
  }
}

// ---- images --------------------------------------------------------------------------------------------------------

// A run of up to V elements in memory order of image n: of channel c from pixel p on (contiguous), or of pixel p from
// channel c on (channels-last). `count` of them exist; <= 0: none. `wide`: see wide_accesses.
template <bool ChannelsLast>
struct Run {
  int64_t n, c, p;
  int64_t channels, pixels;
  int count;
  bool wide;

  __device__ __forceinline__ int64_t at() const {
    return ChannelsLast ? (n * pixels + p) * channels + c : (n * channels + c) * pixels + p;
  }

  template <class T, int V>
  __device__ __forceinline__ void image(float (&out)[V], const void* base) const {
    load(out, static_cast<const T*>(base) + at(), count, wide);
  }
  // From [C] of `row`, or the value `absent` where base is null.
  template <class T, int V>
  __device__ __forceinline__ void channel(float (&out)[V], const void* base, int64_t row, float absent) const {
    if (!base) return fill(out, absent);
    const T* from = static_cast<const T*>(base) + row * channels + c;
    if constexpr (ChannelsLast) {
      load(out, from, count, wide);
    } else {
      fill(out, to_float(*from));
    }
  }
  // From [N or 1, P].
  template <class T, int V>
  __device__ __forceinline__ void pixel(float (&out)[V], const void* base, int64_t stride_n, float absent) const {
    if (!base) return fill(out, absent);
    const T* from = static_cast<const T*>(base) + n * stride_n + p;
    if constexpr (ChannelsLast) {
      fill(out, to_float(*from));
    } else {
      load(out, from, count, wide);
    }
  }
  template <class T, int V>
  __device__ __forceinline__ void write(void* base, const float (&in)[V]) const {
    store(static_cast<T*>(base) + at(), in, count, wide);
  }
};

// Whether every run may be accessed in 16-byte pieces: rows of `length` elements keep the alignment of the pointers
// (null ones do not matter).
template <class T, class... Pointers>
bool wide_accesses(int64_t length, Pointers... pointers) {
  return length % kVector<T> == 0 && (aligned16(pointers) && ...);
}

// d u + noise + bias. One rounding for the first two, by name: left to itself nvcc fuses them here and not there, and
// the GEMM's y would not be the epilogue's.
__device__ __forceinline__ float affine(float u, float d, float noise, float bias) {
  return __fmaf_rn(d, u, noise) + bias;
}

template <class T, class R, int V>
__device__ __forceinline__ void pre_activation(const EpilogueParams& e, const R& run, const float (&u)[V],
                                               const float (&d)[V], float (&v)[V]) {
  float noise[V], bias[V];
  run.template pixel<T>(noise, e.noise, e.noise_stride_n, 0.f);
  run.template channel<T>(bias, e.bias, 0, 0.f);
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = affine(u[j], d[j], noise[j], bias[j]);
}

static inline Finish make_finish(const EpilogueParams& e) {
  return {e.act, float(e.alpha), float(e.gain), float(e.clamp)};
}

// Grids: samples lie on the third axis, which takes 65535; kernels walk on from there.
static inline unsigned sample_blocks(int64_t n) {
  return unsigned(min64(n, 65535));
}

// Calls body(T()) with the CUDA type of `dtype`.
template <class Body>
void for_dtype(DType dtype, const char* name, Body body) {
  switch (dtype) {
    case DType::f32:
      return body(float());
    case DType::f16:
      return body(__half());
    case DType::bf16:
      return body(__nv_bfloat16());
    case DType::f64:
      break;
  }
  throw std::invalid_argument(std::string(name) + ": expected f32, f16 or bf16 on CUDA, got f64");
}

}  // namespace atu::cuda
