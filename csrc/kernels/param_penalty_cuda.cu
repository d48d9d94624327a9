// param_penalty on the device; the math and the tables are in param_penalty.h.
//
// Bound: bytes. A block takes a chunk, whatever tensor it is of, so hundreds of tensors are one launch. Values: every
// thread adds its elements in double, the block adds its threads' sums in a fixed tree and writes one partial sum; a
// second launch of one block adds the partial sums, a warp for each tensor. No atomics: the same bits every time. An
// absent term is a null table, a branch that all threads take alike.
#include "param_penalty.h"

#include "cuda_obstacle.h"
#include "cuda_vector.cuh"

namespace atu {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kFinishThreads = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

// The arrays of one chunk; null where the term is off.
template <class T>
struct Chunk {
  int64_t tensor, size;
  T *theta, *grad;
  const T *anchor, *fisher, *repel;

  __device__ __forceinline__ Chunk(const ParamPenaltyParams& p, int64_t c)
      : tensor(p.chunk_tensor[c]),
        size(min(p.chunk_size, p.numel[tensor] - p.chunk_begin[c])),
        theta(at(p.theta, p, c)),
        grad(at(p.grad, p, c)),
        anchor(at(p.fisher ? p.anchor : nullptr, p, c)),
        fisher(at(p.anchor ? p.fisher : nullptr, p, c)),
        repel(at(p.repel, p, c)) {}

  __device__ __forceinline__ T* at(void* const* table, const ParamPenaltyParams& p, int64_t c) const {
    return table ? static_cast<T*>(table[tensor]) + p.chunk_begin[c] : nullptr;
  }
  __device__ __forceinline__ const T* at(const void* const* table, const ParamPenaltyParams& p, int64_t c) const {
    return table ? static_cast<const T*>(table[tensor]) + p.chunk_begin[c] : nullptr;
  }
};

// Calls body(i, full) for the vectors of the chunk that are this thread's.
template <class T, class Body>
__device__ __forceinline__ void each_vector(const VectorGrid& g, Body body) {
  for (int64_t k = threadIdx.x; k < g.count; k += kThreads) {
    const int64_t i = g.first + k * kVector<T>;
    body(i, g.aligned && i >= 0 && i + kVector<T> <= g.numel);
  }
}

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

// Sums of a and b over the block, for thread 0.
template <int Threads>
__device__ __forceinline__ void block_sum(double& a, double& b) {
  constexpr int kWarps = Threads / 32;
  ATU_SHARED(double, sums, [2][kWarps]);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  a = warp_sum(a), b = warp_sum(b);
  if (lane == 0) sums[0][warp] = a, sums[1][warp] = b;
  __syncthreads();
  if (warp == 0) {
    a = warp_sum(lane < kWarps ? sums[0][lane] : 0.0);
    b = warp_sum(lane < kWarps ? sums[1][lane] : 0.0);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) value_kernel(ParamPenaltyParams p) {
  constexpr int V = kVector<T>;
  const int64_t c = blockIdx.x;
  const Chunk<T> chunk(p, c);
  const VectorGrid g = vector_grid<T>(chunk.size, {chunk.theta, chunk.anchor, chunk.fisher, chunk.repel});
  double ewc = 0.0, distance = 0.0;
  each_vector<T>(g, [&](int64_t i, bool full) {
    double theta[V], other[V], fisher[V];
    load_vector(chunk.theta, i, g.numel, full, theta);
    if (chunk.anchor) {
      load_vector(chunk.anchor, i, g.numel, full, other);
      load_vector(chunk.fisher, i, g.numel, full, fisher);
#pragma unroll
      for (int j = 0; j < V; ++j) ewc += fisher[j] * (theta[j] - other[j]) * (theta[j] - other[j]);
    }
    if (chunk.repel) {
      load_vector(chunk.repel, i, g.numel, full, other);
#pragma unroll
      for (int j = 0; j < V; ++j) distance += (theta[j] - other[j]) * (theta[j] - other[j]);
    }
  });
  block_sum<kThreads>(ewc, distance);
  if (threadIdx.x == 0) {
    p.partials[2 * c] = 0.5 * ewc;
    p.partials[2 * c + 1] = distance;
  }
}

__global__ void __launch_bounds__(kFinishThreads) finish_kernel(ParamPenaltyParams p) {
  const int lane = int(threadIdx.x) % 32;
  double total_ewc = 0.0, total_distance = 0.0;  // of this warp's tensors, kept by lane 0
  for (int64_t t = threadIdx.x / 32; t < p.num_tensors; t += kFinishThreads / 32) {
    double ewc = 0.0, distance = 0.0;
    for (int64_t c = p.first_chunk[t] + lane; c < p.first_chunk[t + 1]; c += 32) {
      ewc += p.partials[2 * c];
      distance += p.partials[2 * c + 1];
    }
    ewc = warp_sum(ewc), distance = warp_sum(distance);
    if (lane == 0) {
      if (p.constant) distance += p.constant[t];
      p.values[t] = ewc;
      p.values[p.num_tensors + t] = distance;
      total_ewc += ewc;
      total_distance += (p.distance_scale ? p.distance_scale[t] : 1.0) * distance;
    }
  }
  block_sum<kFinishThreads>(total_ewc, total_distance);
  if (threadIdx.x == 0) p.total[0] = total_ewc, p.total[1] = total_distance;
}

// g += w_e fisher (theta - anchor) + 2 w_d distance_scale (theta - repel) for one vector.
template <class T, class A>
__device__ __forceinline__ void add_penalty_gradient(const ParamPenaltyParams& p, const Chunk<T>& chunk, int64_t i,
                                                     bool full, const A (&theta)[kVector<T>], A (&g)[kVector<T>]) {
  constexpr int V = kVector<T>;
  A other[V], fisher[V];
  if (chunk.anchor) {
    const A weight = A(p.weights[0]);
    load_vector(chunk.anchor, i, chunk.size, full, other);
    load_vector(chunk.fisher, i, chunk.size, full, fisher);
#pragma unroll
    for (int j = 0; j < V; ++j) g[j] += weight * fisher[j] * (theta[j] - other[j]);
  }
  if (chunk.repel) {
    const A weight = A(2.0 * p.weights[1] * (p.distance_scale ? p.distance_scale[chunk.tensor] : 1.0));
    load_vector(chunk.repel, i, chunk.size, full, other);
#pragma unroll
    for (int j = 0; j < V; ++j) g[j] += weight * (theta[j] - other[j]);
  }
}

// Three blocks a multiprocessor: told nothing, ptxas aims at four with bf16, and spills.
template <class T>
__global__ void __launch_bounds__(kThreads, 3) grad_kernel(ParamPenaltyParams p) {
  const Chunk<T> chunk(p, blockIdx.x);
  const VectorGrid grid =
      vector_grid<T>(chunk.size, {chunk.theta, chunk.grad, chunk.anchor, chunk.fisher, chunk.repel});
  each_vector<T>(grid, [&](int64_t i, bool full) {
    accumulator_t<T> theta[kVector<T>], g[kVector<T>];
    load_vector(chunk.theta, i, chunk.size, full, theta);
    load_vector(chunk.grad, i, chunk.size, full, g);
    add_penalty_gradient(p, chunk, i, full, theta, g);
    store_vector(chunk.grad, i, chunk.size, full, g);
  });
}

// Counts the steps and makes the coefficients that depend on them, for adam_kernel.
__global__ void __launch_bounds__(kThreads) adam_step_kernel(ParamPenaltyAdamParams p) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= p.num_tensors) return;
  const float step = *p.step[t] + 1.f;
  *p.step[t] = step;
  p.coefficients[t] = p.lr / (1.0 - pow(p.beta1, double(step)));
  p.coefficients[p.num_tensors + t] = sqrt(1.0 - pow(p.beta2, double(step)));
}

template <class T>
__global__ void __launch_bounds__(kThreads) adam_kernel(ParamPenaltyAdamParams p) {
  using A = accumulator_t<T>;
  constexpr int V = kVector<T>;
  const Chunk<T> chunk(p, blockIdx.x);
  T* exp_avg = chunk.at(p.exp_avg, p, blockIdx.x);
  T* exp_avg_sq = chunk.at(p.exp_avg_sq, p, blockIdx.x);
  const VectorGrid grid = vector_grid<T>(
      chunk.size, {chunk.theta, chunk.grad, chunk.anchor, chunk.fisher, chunk.repel, exp_avg, exp_avg_sq});
  const A beta1 = A(p.beta1), rest1 = A(1.0 - p.beta1), beta2 = A(p.beta2), rest2 = A(1.0 - p.beta2);
  const A step_size = A(p.coefficients[chunk.tensor]), eps = A(p.eps);
  const A correction = A(p.coefficients[p.num_tensors + chunk.tensor]);
  each_vector<T>(grid, [&](int64_t i, bool full) {
    A theta[V], g[V], m[V], v[V];
    load_vector(chunk.theta, i, chunk.size, full, theta);
    load_vector(chunk.grad, i, chunk.size, full, g);
    load_vector(exp_avg, i, chunk.size, full, m);
    load_vector(exp_avg_sq, i, chunk.size, full, v);
    add_penalty_gradient(p, chunk, i, full, theta, g);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      m[j] = beta1 * m[j] + rest1 * g[j];
      v[j] = beta2 * v[j] + rest2 * g[j] * g[j];
      theta[j] -= step_size * (m[j] / (sqrt(v[j]) / correction + eps));
    }
    store_vector(chunk.theta, i, chunk.size, full, theta);
    store_vector(exp_avg, i, chunk.size, full, m);
    store_vector(exp_avg_sq, i, chunk.size, full, v);
  });
}

// Calls body.operator()<T>() for the dtype.
template <class Body>
void dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::f64:
      return body.template operator()<double>();
    case DType::f16:
      return body.template operator()<__half>();
    case DType::bf16:
      return body.template operator()<__nv_bfloat16>();
  }
}

}  // namespace

// All kernels are built for the same GPUs, so any one of them tells.
std::string cuda_obstacle() {
  return obstacle(finish_kernel);
}

void param_penalty_value_cuda(const ParamPenaltyParams& p, void* stream) {
  if (p.num_chunks > 0) {
    dispatch(p.dtype, [&]<class T>() { ATU_LAUNCH(value_kernel<T>, unsigned(p.num_chunks), kThreads, 0, stream, p); });
  }
  ATU_LAUNCH(finish_kernel, 1, kFinishThreads, 0, stream, p);
}

void param_penalty_grad_cuda(const ParamPenaltyParams& p, void* stream) {
  if (p.num_chunks == 0) return;
  dispatch(p.dtype, [&]<class T>() { ATU_LAUNCH(grad_kernel<T>, unsigned(p.num_chunks), kThreads, 0, stream, p); });
}

void param_penalty_adam_cuda(const ParamPenaltyAdamParams& p, void* stream) {
  if (p.num_tensors == 0) return;
  ATU_LAUNCH(adam_step_kernel, unsigned(ceil_div(p.num_tensors, kThreads)), kThreads, 0, stream, p);
  if (p.num_chunks == 0) return;
  dispatch(p.dtype, [&]<class T>() { ATU_LAUNCH(adam_kernel<T>, unsigned(p.num_chunks), kThreads, 0, stream, p); });
}

}  // namespace atu
