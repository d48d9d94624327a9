// bias_act on the device; the math is in bias_act.h.
//
// Bound: bytes. A thread takes one vector of 16 bytes of each array. The activation is a uniform branch, so one kernel
// for each dtype serves them all. The bias index of a vector costs one division; within the vector it is counted on.
#include "bias_act.h"

#include "activation_cuda.cuh"
#include "cuda_vector.cuh"

namespace atu {
namespace {

using namespace cuda;

constexpr int kThreads = 256;

// Calls body(i, full) for the vector of this thread: elements [i, i + V).
template <class T, class Body>
__device__ __forceinline__ void own_vector(const VectorGrid& g, Body body) {
  const int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= g.count) return;
  const int64_t i = g.first + k * kVector<T>;
  body(i, g.aligned && i >= 0 && i + kVector<T> <= g.numel);
}

// Element (i / inner) % channels of the bias for V elements from i on.
template <class T, class Index, class A>
__device__ __forceinline__ void load_bias(const BiasActParams& p, int64_t i, A (&out)[kVector<T>]) {
  const T* bias = static_cast<const T*>(p.bias);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) out[j] = A(0);
  if (bias == nullptr) return;
  const int64_t start = i < 0 ? 0 : i;  // of the first, partial vector the elements before 0 do not count
  const Index inner = Index(p.inner), channels = Index(p.channels), row = Index(start) / inner;
  Index channel = row % channels, left = inner - (Index(start) - row * inner);
  A value = to_float(__ldg(bias + channel));
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    if (i + j < 0 || i + j >= p.numel) continue;
    out[j] = value;
    if (--left == 0 && i + j + 1 < p.numel) {
      left = inner;
      channel = channel + 1 == channels ? 0 : channel + 1;
      value = to_float(__ldg(bias + channel));
    }
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) bias_act_kernel(BiasActForwardParams p, VectorGrid g) {
  using A = accumulator_t<T>;
  constexpr int V = kVector<T>;
  own_vector<T>(g, [&](int64_t i, bool full) {
    A v[V], b[V], y[V];
    load_vector(static_cast<const T*>(p.x), i, p.numel, full, v);
    load_bias<T, Index>(p, i, b);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] += b[j];
    act_value(p.act, A(p.alpha), v, y);
    const A gain = A(p.gain), clamp = A(p.clamp);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      y[j] *= gain;
      // Not fmin, fmax: a NaN must stay one.
      if (clamp >= A(0)) y[j] = y[j] < -clamp ? -clamp : y[j] > clamp ? clamp : y[j];
    }
    store_vector(static_cast<T*>(p.y), i, p.numel, full, y);
  });
}

// slope = gain act'(v) inside and, where Curvature, curvature = gain act''(v) inside, from the saved tensor.
template <class T, class Index, bool Curvature, class A>
__device__ __forceinline__ void derivatives(const BiasActParams& p, Reference kind, const void* reference, int64_t i,
                                            bool full, A (&slope)[kVector<T>], A (&curvature)[kVector<T>]) {
  constexpr int V = kVector<T>;
  const A gain = A(p.gain), alpha = A(p.alpha);
  if (kind == Reference::none) {
#pragma unroll
    for (int j = 0; j < V; ++j) slope[j] = gain, curvature[j] = A(0);
    return;
  }
  A r[V], y[V];
  A clamp = A(p.clamp);
  load_vector(static_cast<const T*>(reference), i, p.numel, full, r);
  if (kind == Reference::y) {
    const A inverse = A(1) / gain;
#pragma unroll
    for (int j = 0; j < V; ++j) y[j] = r[j], r[j] *= inverse;
    act_slope_from_value(p.act, alpha, r, slope);
    if constexpr (Curvature) act_curvature_from_value(p.act, r, curvature);
    clamp = to_float(from_float<T>(clamp));  // y was rounded: compare it with the bound rounded alike
  } else {
    load_bias<T, Index>(p, i, y);
#pragma unroll
    for (int j = 0; j < V; ++j) r[j] += y[j];
    act_slope(p.act, alpha, r, slope);
    if constexpr (Curvature) act_curvature(p.act, r, curvature);
    if (clamp >= A(0)) {
      act_value(p.act, alpha, r, y);
#pragma unroll
      for (int j = 0; j < V; ++j) y[j] *= gain;
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const A factor = clamp >= A(0) && !(fabs(y[j]) < clamp) ? A(0) : gain;
    slope[j] *= factor;
    if constexpr (Curvature) curvature[j] *= factor;
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) bias_act_grad_kernel(BiasActGradParams p, VectorGrid g) {
  using A = accumulator_t<T>;
  constexpr int V = kVector<T>;
  own_vector<T>(g, [&](int64_t i, bool full) {
    A dy[V], slope[V], unused[V];
    load_vector(static_cast<const T*>(p.dy), i, p.numel, full, dy);
    derivatives<T, Index, false>(p, p.kind, p.reference, i, full, slope, unused);
#pragma unroll
    for (int j = 0; j < V; ++j) dy[j] *= slope[j];
    store_vector(static_cast<T*>(p.dx), i, p.numel, full, dy);
  });
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) bias_act_grad2_kernel(BiasActGrad2Params p, VectorGrid g) {
  using A = accumulator_t<T>;
  constexpr int V = kVector<T>;
  own_vector<T>(g, [&](int64_t i, bool full) {
    A arriving[V], slope[V], curvature[V];
    load_vector(static_cast<const T*>(p.g), i, p.numel, full, arriving);
    derivatives<T, Index, true>(p, p.kind, p.reference, i, full, slope, curvature);
    if (p.d_x != nullptr) {
      A dy[V];
      load_vector(static_cast<const T*>(p.dy), i, p.numel, full, dy);
#pragma unroll
      for (int j = 0; j < V; ++j) curvature[j] *= arriving[j] * dy[j];
      store_vector(static_cast<T*>(p.d_x), i, p.numel, full, curvature);
    }
    if (p.d_dy != nullptr) {
#pragma unroll
      for (int j = 0; j < V; ++j) slope[j] *= arriving[j];
      store_vector(static_cast<T*>(p.d_dy), i, p.numel, full, slope);
    }
  });
}

unsigned blocks(const VectorGrid& g) {
  return unsigned(ceil_div(g.count, kThreads));
}

// Calls body.operator()<T, Index>() for the dtype and the size. 2^31 blocks of 4 KiB are more than any memory.
template <class Body>
void dispatch(const BiasActParams& p, const Body& body) {
  if (p.numel == 0) return;
  const auto sized = [&]<class T>() {
    if (p.numel < int64_t{1} << 31) return body.template operator()<T, uint32_t>();
    return body.template operator()<T, uint64_t>();
  };
  switch (p.dtype) {
    case DType::f32:
      return sized.template operator()<float>();
    case DType::f64:
      return sized.template operator()<double>();
    case DType::f16:
      return sized.template operator()<__half>();
    case DType::bf16:
      return sized.template operator()<__nv_bfloat16>();
  }
}

}  // namespace

void bias_act_cuda(const BiasActForwardParams& p, void* stream) {
  dispatch(p, [&]<class T, class Index>() {
    const VectorGrid g = vector_grid<T>(p.numel, {p.x, p.y});
    ATU_LAUNCH((bias_act_kernel<T, Index>), blocks(g), kThreads, 0, stream, p, g);
  });
}

void bias_act_grad_cuda(const BiasActGradParams& p, void* stream) {
  dispatch(p, [&]<class T, class Index>() {
    const VectorGrid g = vector_grid<T>(p.numel, {p.dy, p.dx, p.reference});
    ATU_LAUNCH((bias_act_grad_kernel<T, Index>), blocks(g), kThreads, 0, stream, p, g);
  });
}

void bias_act_grad2_cuda(const BiasActGrad2Params& p, void* stream) {
  dispatch(p, [&]<class T, class Index>() {
    const VectorGrid g = vector_grid<T>(p.numel, {p.g, p.dy, p.reference, p.d_dy, p.d_x});
    ATU_LAUNCH((bias_act_grad2_kernel<T, Index>), blocks(g), kThreads, 0, stream, p, g);
  });
}

}  // namespace atu
