// Kernels for tests/emulation/test_emulation.py. Each `faulty_*` case plants one fault that must be reported.
#include "kernels/cuda_common.cuh"

namespace {

using namespace atu::cuda;

__global__ void scale(const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = 2.0f * x[i];
}

__global__ void scale_without_tail_guard(const float* x, float* y, int) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = 2.0f * x[i];
}

__global__ void scale_off_by_one(const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i + 1 < n) y[i] = 2.0f * x[i];
}

template <int Vector>
__global__ void scale_vectors(const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * Vector;
  if (i + Vector <= n) *reinterpret_cast<float4*>(y + i) = *reinterpret_cast<const float4*>(x + i);
}

template <int Vector>
__global__ void store_vectors(const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * Vector;
  if (i + Vector <= n) __stwb(reinterpret_cast<float4*>(y + i), make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]));
}

template <bool Barrier>
__global__ void reverse_tile(const float* x, float* y, int n) {
  ATU_SHARED(float, tile, [64]);
  const int t = static_cast<int>(threadIdx.x), base = static_cast<int>(blockIdx.x) * 64;
  tile[t] = base + t < n ? x[base + t] : 0.0f;
  if (Barrier) __syncthreads();
  if (base + t < n) y[base + t] = tile[min(64, n - base) - 1 - t];
}

// Without the second barrier a fast warp overwrites the tile while a slow one still reads it.
__global__ void reverse_twice(const float* x, float* y, int n) {
  ATU_SHARED(float, tile, [64]);
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = x[t];
  __syncthreads();
  const float v = tile[63 - t];
  tile[t] = 2.0f * v;
  __syncthreads();
  if (t < n) y[t] = tile[63 - t];
}

__global__ void shared_beyond(const float* x, float* y, int) {
  ATU_SHARED(float, tile, [8][8]);
  const int t = static_cast<int>(threadIdx.x);
  if (t < 64) tile[t / 8][t % 8] = x[t];
  __syncthreads();
  if (t < 64) y[t] = tile[t / 8][t % 8 + 1];  // column 8 is the next row's column 0
}

__global__ void dynamic_beyond(const float* x, float* y, int n) {
  ATU_DYNAMIC_SHARED(float, tile);
  const int t = static_cast<int>(threadIdx.x);
  tile[t + 1] = x[t];
  __syncthreads();
  if (t < n) y[t] = tile[t + 1];
}

__global__ void shared_uninitialised(const float*, float* y, int n) {
  ATU_SHARED(float, tile, [64]);
  const int t = static_cast<int>(threadIdx.x);
  if (t % 2 == 0) tile[t] = 1.0f;
  __syncthreads();
  if (t < n) y[t] = tile[t];
}

__global__ void barrier_in_branch(const float* x, float* y, int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  if (t < n) y[t] = x[t];
}

__global__ void barrier_after_return(const float* x, float* y, int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= n) return;
  __syncthreads();
  y[t] = x[t];
}

__global__ void blocks_race(const float* x, float* y, int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < n) y[t] = x[t] + static_cast<float>(blockIdx.x);
}

__global__ void warp_sum(const float* x, float* y, int n) {
  const int t = static_cast<int>(threadIdx.x);
  float v = t < n ? x[t] : 0.0f;
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  const unsigned positive = __ballot_sync(0xffffffffu, t < n && x[t] > 0.0f);
  if (t == 0) {
    y[0] = v;
    y[1] = static_cast<float>(__popc(positive));
  }
}

__global__ void shuffle_from_outside(const float* x, float* y, int) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < 16) y[t] = __shfl_sync(0x0000ffffu, x[t], t + 16);
}

__global__ void warp_lane_missing(const float* x, float* y, int) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < 31) y[t] = __shfl_down_sync(0xffffffffu, x[t], 1);
}

// Order of atomic float additions decides the last bits: thread orders must disagree.
__global__ void float_atomics(const float* x, float* y, int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < n) atomicAdd(y, x[t]);
}

template <bool Wait>
__global__ void async_copy(const float* x, float* y, int n) {
  ATU_SHARED(float, tile, [64]);
  const int t = static_cast<int>(threadIdx.x);
  if (t < 16) cp_async<16>(tile + 4 * t, 4 * t < n ? x + 4 * t : nullptr, 4 * t < n);
  cp_async_commit();
  if (Wait) cp_async_wait<0>();
  __syncthreads();
  if (t < n) y[t] = tile[t];
}

// y [16][8] = x [16][16] times x [16][16]'s first 8 columns (float16), by one warp. WrongRow shifts one fragment row.
template <class T, bool WrongRow>
__global__ void matrix_product(const float* x, float* y, int) {
  ATU_SHARED(T, a, [16][24]);
  ATU_SHARED(T, b, [16][24]);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) {
    a[i / 16][i % 16] = from_float<T>(x[i]);
    b[i / 16][i % 16] = from_float<T>(x[i]);
  }
  __syncthreads();
  std::uint32_t fa[4], fb[2];
  float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  ldmatrix<4>(fa, &a[(lane % 16) ^ (WrongRow ? 1 : 0)][lane / 16 * 8]);
  ldmatrix<2, true>(fb, &b[lane % 16][0]);
  mma_m16n8k16<T>(acc, fa, fb);
  for (int i = 0; i < 4; ++i) y[(lane / 4 + 8 * (i / 2)) * 8 + lane % 4 * 2 + i % 2] = acc[i];
}

__global__ void matrix_product_tf32(const float* x, float* y, int) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int k = 0; k < 16; k += 8) {
    const std::uint32_t fa[4] = {to_tf32(x[g * 16 + k + t]), to_tf32(x[(g + 8) * 16 + k + t]),
                                 to_tf32(x[g * 16 + k + t + 4]), to_tf32(x[(g + 8) * 16 + k + t + 4])};
    const std::uint32_t fb[2] = {to_tf32(x[(k + t) * 16 + g]), to_tf32(x[(k + t + 4) * 16 + g])};
    mma_m16n8k8_tf32(acc, fa, fb);
  }
  for (int i = 0; i < 4; ++i) y[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = acc[i];
}

void run_case(const std::string& name, const float* x, float* y, std::int64_t count) {
  const int n = static_cast<int>(count);
  const unsigned blocks = static_cast<unsigned>((n + 63) / 64);
  void* stream = nullptr;
#define CASE(label, kernel, grid, block, shared) \
  if (name == label) return ATU_LAUNCH(kernel, grid, block, shared, stream, x, y, n)
  CASE("scale", scale, blocks, 64, 0);
  CASE("faulty_tail", scale_without_tail_guard, blocks, 64, 0);
  CASE("faulty_off_by_one", scale_off_by_one, blocks, 64, 0);
  CASE("vectors", scale_vectors<4>, blocks, 64, 0);
  CASE("faulty_misaligned", scale_vectors<1>, 1, 2, 0);
  CASE("stored_vectors", store_vectors<4>, blocks, 64, 0);
  CASE("faulty_misaligned_store", store_vectors<1>, 1, 2, 0);
  CASE("reverse", reverse_tile<true>, blocks, 64, 0);
  CASE("faulty_no_barrier", reverse_tile<false>, blocks, 64, 0);
  CASE("faulty_lost_barrier", reverse_twice, 1, 64, 0);
  CASE("faulty_shared_row", shared_beyond, 1, 64, 0);
  CASE("faulty_dynamic_shared", dynamic_beyond, 1, 64, 64 * sizeof(float));
  CASE("faulty_shared_uninitialised", shared_uninitialised, 1, 64, 0);
  CASE("faulty_barrier_in_branch", barrier_in_branch, 1, 64, 0);
  CASE("faulty_barrier_after_return", barrier_after_return, 1, 64, 0);
  CASE("faulty_blocks_race", blocks_race, 2, 64, 0);
  CASE("warp", warp_sum, 1, 32, 0);
  CASE("faulty_shuffle_outside", shuffle_from_outside, 1, 32, 0);
  CASE("faulty_warp_lane", warp_lane_missing, 1, 32, 0);
  CASE("faulty_float_atomics", float_atomics, 1, 64, 0);
  CASE("async_copy", async_copy<true>, 1, 64, 0);
  CASE("faulty_async_copy", async_copy<false>, 1, 64, 0);
  CASE("mma_f16", (matrix_product<__half, false>), 1, 32, 0);
  CASE("mma_bf16", (matrix_product<__nv_bfloat16, false>), 1, 32, 0);
  CASE("mma_tf32", matrix_product_tf32, 1, 32, 0);
  CASE("faulty_fragment_row", (matrix_product<__half, true>), 1, 32, 0);
  CASE("faulty_block_size", scale, 1, 1056, 0);
  CASE("faulty_shared_size", scale, 1, 32, 49 * 1024);
#undef CASE
  throw std::invalid_argument("selftest: no case " + name);
}

}  // namespace

// Runs the named case; returns what went wrong, or null.
extern "C" __attribute__((visibility("default"))) const char* selftest(const char* name, const float* x, float* y,
                                                                       std::int64_t n) {
  static std::string message;
  try {
    run_case(name, x, y, n);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
