// The passes with sums over pixels and channels: modulate_grad, epilogue_grad, epilogue_grad2. The contract and the
// math are in modulated_conv2d.h.
//
// One traversal for each layout serves all three; what an element gives is in the struct of the pass: images written,
// two terms of sums over pixels (for [N, C] results) and one of a sum over channels (for [N, P] results).
//
// A block takes up to kCudaPixelBlock pixels of a sample. Sums over its pixels, float32, go to `partials` in double;
// add_partials adds them in a fixed order. Where a sum over channels is wanted, the block walks over all channels and
// finishes the sum; where not, channels are spread over blocks too. No atomics: results repeat bit for bit.
#include <climits>

#include "modulated_conv2d_cuda.cuh"

namespace atu {
namespace {

using namespace cuda;

constexpr int kThreads = 256, kWarps = kThreads / 32;

// ---- what an element gives ------------------------------------------------------------------------------------------

// act'(v) gain inside, and with Second act''(v) gain inside.
template <bool Second, int V>
__device__ __forceinline__ void slopes(const Finish& f, const float (&v)[V], float (&first)[V], float (&second)[V]) {
  unsigned inside = ~0u;
  if (f.clamp >= 0.f) {
    act_value(f.act, f.alpha, v, first);
    inside = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) inside |= unsigned{fabsf(first[j] * f.gain) < f.clamp} << j;
  }
  if constexpr (Second) act_curvature(f.act, v, second);
  act_slope(f.act, f.alpha, v, first);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float factor = inside >> j & 1 ? f.gain : 0.f;
    first[j] *= factor;
    if constexpr (Second) second[j] *= factor;
  }
}

template <class T, bool ChannelsLast>
struct ModulateGradPass {
  ModulateGradParams p;

  template <int V>
  __device__ __forceinline__ void operator()(const Run<ChannelsLast>& run, float (&sum0)[V], float (&)[V],
                                             float (&)[V]) const {
    float g[V], x[V], s[V];
    run.template image<T>(g, p.grad_out);
    run.template image<T>(x, p.x);
    run.template channel<T>(s, p.styles, run.n, 1.f);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sum0[j] = x[j] * g[j];
      g[j] *= s[j];
    }
    if (p.grad_x) run.template write<T>(p.grad_x, g);
  }
};

template <class T, bool ChannelsLast>
struct EpilogueGradPass {
  EpilogueGradParams p;
  Finish f;

  template <int V>
  __device__ __forceinline__ void operator()(const Run<ChannelsLast>& run, float (&sum0)[V], float (&sum1)[V],
                                             float (&pixel)[V]) const {
    float u[V], d[V], v[V], dy[V];
    run.template image<T>(u, p.u);
    run.template image<T>(dy, p.dy);
    run.template channel<T>(d, p.d, run.n, 1.f);
    pre_activation<T>(p, run, u, d, v);
    slopes<false>(f, v, sum1, v);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float dv = dy[j] * sum1[j];
      sum0[j] = dv * u[j];
      sum1[j] = pixel[j] = dv;
      dy[j] = dv * d[j];
    }
    run.template write<T>(p.du, dy);
  }
};

template <class T, bool ChannelsLast>
struct EpilogueGrad2Pass {
  EpilogueGrad2Params p;
  Finish f;

  template <int V>
  __device__ __forceinline__ void operator()(const Run<ChannelsLast>& run, float (&sum0)[V], float (&sum1)[V],
                                             float (&pixel)[V]) const {
    float u[V], d[V], v[V], dy[V], gu[V], gd[V], gn[V], gb[V], f1[V], f2[V];
    run.template image<T>(u, p.u);
    run.template image<T>(dy, p.dy);
    if (p.gu) {
      run.template image<T>(gu, p.gu);
    } else {
      fill(gu, 0.f);
    }
    run.template channel<T>(d, p.d, run.n, 1.f);
    pre_activation<T>(p, run, u, d, v);
    slopes<true>(f, v, f1, f2);
    // Only now, to hold fewer registers across the branches of the activation; these come from the cache.
    run.template channel<T>(gd, p.gd, run.n, 0.f);
    run.template channel<T>(gb, p.gb, run.n, 0.f);
    run.template pixel<T>(gn, p.gn, run.pixels, 0.f);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float t = gu[j] * d[j] + gd[j] * u[j] + gn[j] + gb[j];
      const float slope = f1[j], e = dy[j] * f2[j] * t, dv = dy[j] * slope;
      sum0[j] = dv * gu[j] + e * u[j];
      sum1[j] = pixel[j] = e;
      f1[j] = slope * t;
      f2[j] = dv * gd[j] + e * d[j];
    }
    run.template write<T>(p.d_dy, f1);
    run.template write<T>(p.d_u, f2);
  }
};

// ---- traversals -----------------------------------------------------------------------------------------------------

struct Sums {
  int64_t n, c, pixels, pixel_block, blocks;
  double* partials;  // [2, N, blocks, C], or null
  bool second;       // whether partials has a second array
  void* pixel_sums;  // [N, P], or null
  bool wide;

  __device__ __forceinline__ double* partial(int array, int64_t sample, int64_t block, int64_t channel) const {
    return partials + ((array * n + sample) * blocks + block) * c + channel;
  }
};

// v[0..3] to shared memory in one store. Lanes with 16 bytes each side by side reach all banks; with one store for each
// element, lanes would meet in every fourth or eighth.
__device__ __forceinline__ void store_four(float* shared, const float* v) {
  *reinterpret_cast<float4*>(shared) = make_float4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ float warp_sum(float v, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

// Contiguous images. A warp takes one channel at a time, a lane the same runs of V pixels of each: lanes side by side,
// so that one access of a warp covers 512 bytes without gaps.
template <class T, class Pass>
__global__ void __launch_bounds__(kThreads, 2)
    planar_kernel(const __grid_constant__ Pass pass, const __grid_constant__ Sums s) {
  constexpr int V = kVector<T>, kRuns = static_cast<int>(kCudaPixelBlock) / 32 / V;
  ATU_SHARED(float, warp_pixels, [kWarps][kCudaPixelBlock]);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  Run<false> run;
  run.channels = s.c, run.pixels = s.pixels, run.wide = s.wide;
  const int64_t first = blockIdx.x * s.pixel_block;
  const int pixels = static_cast<int>(s.pixels - first < s.pixel_block ? s.pixels - first : s.pixel_block);
  for (run.n = blockIdx.z; run.n < s.n; run.n += gridDim.z) {
    float pixel_sums[kRuns][V] = {};
    for (run.c = int64_t{blockIdx.y} * kWarps + warp; run.c < s.c; run.c += int64_t{gridDim.y} * kWarps) {
      float sum0 = 0.f, sum1 = 0.f;
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
        const int p = (r * 32 + lane) * V;
        run.p = first + p;
        run.count = pixels - p < V ? pixels - p : V;
        if (run.count <= 0) continue;
        float term0[V], term1[V], pixel[V];
        pass(run, term0, term1, pixel);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          if (j >= run.count) continue;
          sum0 += term0[j];
          if (s.second) sum1 += term1[j];
          if (s.pixel_sums) pixel_sums[r][j] += pixel[j];
        }
      }
      if (!s.partials) continue;
      sum0 = warp_sum(sum0, 32);
      if (s.second) sum1 = warp_sum(sum1, 32);
      if (lane == 0) {
        *s.partial(0, run.n, blockIdx.x, run.c) = sum0;
        if (s.second) *s.partial(1, run.n, blockIdx.x, run.c) = sum1;
      }
    }
    if (!s.pixel_sums) continue;
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
#pragma unroll
      for (int j = 0; j < V; j += 4) store_four(&warp_pixels[warp][(r * 32 + lane) * V + j], &pixel_sums[r][j]);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < pixels; i += kThreads) {
      float sum = 0.f;
      for (int w = 0; w < kWarps; ++w) sum += warp_pixels[w][i];
      static_cast<T*>(s.pixel_sums)[run.n * s.pixels + first + i] = from_float<T>(sum);
    }
    __syncthreads();
  }
}

// Channels-last images. `lanes` (a power of two up to 32) lanes take one pixel and a chunk of lanes * V channels; the
// block's 256 / lanes groups take pixels in turn. A block walks over chunks.
template <class T, class Pass>
__global__ void __launch_bounds__(kThreads, 2)
    channels_last_kernel(const __grid_constant__ Pass pass, const __grid_constant__ Sums s, int lanes) {
  constexpr int V = kVector<T>;
  // Four channels of each thread side by side, the next four after them; 16 more shift these to the other banks.
  ATU_SHARED(float, group_sums, [2][V / 4][kThreads * 4 + 16]);
  ATU_SHARED(float, pixel_sums, [kCudaPixelBlock]);
  const int thread = static_cast<int>(threadIdx.x), group = thread / lanes, lane = thread % lanes;
  const int groups = kThreads / lanes, chunk = lanes * V;
  Run<true> run;
  run.channels = s.c, run.pixels = s.pixels, run.wide = s.wide;
  const int64_t first = blockIdx.x * s.pixel_block;
  const int pixels = static_cast<int>(s.pixels - first < s.pixel_block ? s.pixels - first : s.pixel_block);
  for (run.n = blockIdx.z; run.n < s.n; run.n += gridDim.z) {
    for (int64_t c0 = int64_t{blockIdx.y} * chunk; c0 < s.c; c0 += int64_t{gridDim.y} * chunk) {
      run.c = c0 + lane * V;
      run.count = s.c - run.c < V ? static_cast<int>(s.c - run.c) : V;
      float sum0[V] = {}, sum1[V] = {};
      for (int p0 = 0; p0 < pixels; p0 += groups) {  // the same number of steps for all: lanes of a warp meet below
        const int p = p0 + group;
        run.p = first + p;
        float pixel_sum = 0.f;
        if (p < pixels && run.count > 0) {
          float term0[V], term1[V], pixel[V];
          pass(run, term0, term1, pixel);
#pragma unroll
          for (int j = 0; j < V; ++j) {
            if (j >= run.count) continue;
            sum0[j] += term0[j];
            if (s.second) sum1[j] += term1[j];
            if (s.pixel_sums) pixel_sum += pixel[j];
          }
        }
        if (!s.pixel_sums) continue;
        pixel_sum = warp_sum(pixel_sum, lanes);
        if (lane == 0 && p < pixels) pixel_sums[p] = c0 == 0 ? pixel_sum : pixel_sums[p] + pixel_sum;
      }
      if (!s.partials) continue;
#pragma unroll
      for (int q = 0; q < V / 4; ++q) {
        store_four(&group_sums[0][q][thread * 4], &sum0[q * 4]);
        if (s.second) store_four(&group_sums[1][q][thread * 4], &sum1[q * 4]);
      }
      __syncthreads();
      for (int i = thread; i < chunk && c0 + i < s.c; i += kThreads) {
        for (int array = 0; array < (s.second ? 2 : 1); ++array) {
          float sum = 0.f;
          for (int g = 0; g < groups; ++g) sum += group_sums[array][i % V / 4][(g * lanes + i / V) * 4 + i % 4];
          *s.partial(array, run.n, blockIdx.x, c0 + i) = sum;
        }
      }
      __syncthreads();
    }
    if (!s.pixel_sums) continue;
    __syncthreads();
    for (int i = thread; i < pixels; i += kThreads) {
      static_cast<T*>(s.pixel_sums)[run.n * s.pixels + first + i] = from_float<T>(s.c > 0 ? pixel_sums[i] : 0.f);
    }
    __syncthreads();
  }
}

// out[n, c] = sum of partials[n, block, c] over blocks. A thread block takes 32 channels of a sample; its rows of
// threads take every 8th block, then the rows are added in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(const double* partials, T* out, int64_t samples, int64_t channels, int64_t blocks) {
  ATU_SHARED(double, rows, [kWarps][32]);
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t c = int64_t{blockIdx.x} * 32 + x;
  for (int64_t n = blockIdx.z; n < samples; n += gridDim.z) {
    double sum = 0;
    if (c < channels) {
#pragma unroll 4
      for (int64_t b = y; b < blocks; b += kWarps) sum += partials[(n * blocks + b) * channels + c];
    }
    rows[y][x] = sum;
    __syncthreads();
    if (y == 0 && c < channels) {
      for (int r = 1; r < kWarps; ++r) sum += rows[r][x];
      out[n * channels + c] = from_float<T>(static_cast<float>(sum));
    }
    __syncthreads();
  }
}

template <class T>
void add_partials(const Sums& s, int array, void* out, void* stream) {
  if (!out || s.n * s.c == 0) return;
  const dim3 grid(unsigned(ceil_div(s.c, 32)), 1, sample_blocks(s.n));
  ATU_LAUNCH(add_partials_kernel<T>, grid, dim3(32, kWarps), 0, stream, s.partials + array * s.n * s.blocks * s.c,
             static_cast<T*>(out), s.n, s.c, s.blocks);
}

template <class P>
Sums make_sums(const P& p, void* sum0, void* sum1, void* pixel_sums, const char* name) {
  if (p.pixel_block < 1 || p.pixel_block > kCudaPixelBlock) {
    throw std::invalid_argument(std::string(name) + ": pixel_block must be 1.." + std::to_string(kCudaPixelBlock) +
                                ", got " + std::to_string(p.pixel_block));
  }
  const int64_t blocks = ceil_div(p.pixels, p.pixel_block);
  if (blocks > INT_MAX) throw std::invalid_argument(std::string(name) + ": too many pixels");
  return {p.n,        p.c,  p.pixels, p.pixel_block, blocks, sum0 || sum1 ? p.partials : nullptr, sum1 != nullptr,
          pixel_sums, false};
}

// Without channels the sums over them are still to be written.
bool nothing_to_write(const Sums& s) {
  return s.n * s.blocks == 0 || (s.c == 0 && !s.pixel_sums);
}

// Whether the blocks of planar rows begin as well aligned as the rows.
template <class T, class P>
bool wide_blocks(const P& p) {
  return p.pixel_block % kVector<T> == 0;
}

template <class T, class Pass>
void launch_planar(const Pass& pass, const Sums& s, void* stream) {
  if (nothing_to_write(s)) return;
  const int64_t warps = s.pixel_sums ? 1 : min64(ceil_div(s.c, kWarps), 65535);
  const dim3 grid(unsigned(s.blocks), unsigned(warps), sample_blocks(s.n));
  ATU_LAUNCH((planar_kernel<T, Pass>), grid, kThreads, 0, stream, pass, s);
}

template <class T, class Pass>
void launch_channels_last(const Pass& pass, const Sums& s, void* stream) {
  if (nothing_to_write(s)) return;
  int lanes = 1;
  while (lanes < 32 && lanes * kVector<T> < s.c) lanes *= 2;
  const int64_t chunks = s.pixel_sums ? 1 : min64(ceil_div(s.c, lanes * kVector<T>), 65535);
  const dim3 grid(unsigned(s.blocks), unsigned(chunks), sample_blocks(s.n));
  ATU_LAUNCH((channels_last_kernel<T, Pass>), grid, kThreads, 0, stream, pass, s, lanes);
}

template <class T>
void launch(const ModulateGradParams& p, void* stream) {
  Sums s = make_sums(p, p.grad_styles, nullptr, nullptr, "modulate_grad_cuda");
  if (p.channels_last) {
    s.wide = wide_accesses<T>(p.c, p.x, p.grad_out, p.grad_x, p.styles);
    launch_channels_last<T>(ModulateGradPass<T, true>{p}, s, stream);
  } else {
    s.wide = wide_blocks<T>(p) && wide_accesses<T>(p.pixels, p.x, p.grad_out, p.grad_x);
    launch_planar<T>(ModulateGradPass<T, false>{p}, s, stream);
  }
  add_partials<T>(s, 0, p.grad_styles, stream);
}

template <class T>
void launch(const EpilogueGradParams& p, void* stream) {
  Sums s = make_sums(p, p.dd, p.db, p.dnoise, "epilogue_grad_cuda");
  if (p.channels_last) {
    s.wide = wide_accesses<T>(p.c, p.u, p.dy, p.du, p.d, p.bias);
    launch_channels_last<T>(EpilogueGradPass<T, true>{p, make_finish(p)}, s, stream);
  } else {
    s.wide = wide_blocks<T>(p) && wide_accesses<T>(p.pixels, p.u, p.dy, p.du, p.noise);
    launch_planar<T>(EpilogueGradPass<T, false>{p, make_finish(p)}, s, stream);
  }
  add_partials<T>(s, 0, p.dd, stream);
  add_partials<T>(s, 1, p.db, stream);
}

template <class T>
void launch(const EpilogueGrad2Params& p, void* stream) {
  Sums s = make_sums(p, p.d_d, p.d_b, p.d_noise, "epilogue_grad2_cuda");
  if (p.channels_last) {
    s.wide = wide_accesses<T>(p.c, p.u, p.dy, p.gu, p.d_dy, p.d_u, p.d, p.bias, p.gd, p.gb);
    launch_channels_last<T>(EpilogueGrad2Pass<T, true>{p, make_finish(p)}, s, stream);
  } else {
    s.wide = wide_blocks<T>(p) && wide_accesses<T>(p.pixels, p.u, p.dy, p.gu, p.d_dy, p.d_u, p.noise, p.gn);
    launch_planar<T>(EpilogueGrad2Pass<T, false>{p, make_finish(p)}, s, stream);
  }
  add_partials<T>(s, 0, p.d_d, stream);
  add_partials<T>(s, 1, p.d_b, stream);
}

}  // namespace

void modulate_grad_cuda(const ModulateGradParams& p, void* stream) {
  if (p.n * p.c == 0) return;
  if (!p.grad_styles) {  // no sums: dx = s dout
    ModulateParams m = p;
    m.x = p.grad_out, m.out = p.grad_x, m.out_channels_last = p.channels_last;
    return modulate_cuda(m, stream);
  }
  for_dtype(p.dtype, "modulate_grad_cuda", [&](auto t) { launch<decltype(t)>(p, stream); });
}

void epilogue_grad_cuda(const EpilogueGradParams& p, void* stream) {
  if (p.n * p.c == 0 && !p.dnoise) return;
  for_dtype(p.dtype, "epilogue_grad_cuda", [&](auto t) { launch<decltype(t)>(p, stream); });
}

void epilogue_grad2_cuda(const EpilogueGrad2Params& p, void* stream) {
  if (p.n * p.c == 0 && !p.d_noise) return;
  for_dtype(p.dtype, "epilogue_grad2_cuda", [&](auto t) { launch<decltype(t)>(p, stream); });
}

}  // namespace atu
