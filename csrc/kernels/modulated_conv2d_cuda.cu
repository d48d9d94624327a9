// The forward passes round the convolution and those over the weight. The contract and the math are in
// modulated_conv2d.h; the gradients with sums over pixels or channels in modulated_conv2d_grad_cuda.cu.
//
// All arithmetic is float32, rounded to the dtype where a tensor is written. Bound: bytes, so a thread moves 16 at a
// time and takes one run of elements of one channel (contiguous) or one pixel (channels-last); what is constant over
// the run is read once.
#include <climits>

#include "modulated_conv2d_cuda.cuh"

namespace atu {
namespace {

using namespace cuda;

constexpr int kThreads = 256;

unsigned blocks_for(int64_t threads) {
  return unsigned(min64(ceil_div(threads, kThreads), INT_MAX));
}

// ---- epilogue, and modulate where the layout stays ------------------------------------------------------------------

template <class T, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads)
    epilogue_kernel(const __grid_constant__ EpilogueScaledParams e, Finish f, bool wide) {
  constexpr int V = kVector<T>;
  const int64_t length = ChannelsLast ? e.c : e.pixels, lines = ChannelsLast ? e.pixels : e.c;
  const int64_t runs_per_line = (length + V - 1) / V, runs = lines * runs_per_line;
  for (int64_t n = blockIdx.z; n < e.n; n += gridDim.z) {
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < runs; i += int64_t{gridDim.x} * kThreads) {
      // 32-bit division is several times cheaper.
      const bool small = runs <= UINT_MAX;
      const int64_t line = small ? static_cast<unsigned>(i) / static_cast<unsigned>(runs_per_line) : i / runs_per_line;
      const int64_t first = (i - line * runs_per_line) * V;
      Run<ChannelsLast> run;
      run.n = n, run.channels = e.c, run.pixels = e.pixels, run.wide = wide;
      run.c = ChannelsLast ? first : line;
      run.p = ChannelsLast ? line : first;
      run.count = length - first < V ? static_cast<int>(length - first) : V;
      float u[V], d[V], v[V];
      run.template image<T>(u, e.u);
      run.template channel<T>(d, e.d, n, 1.f);
      pre_activation<T>(e, run, u, d, v);
      finish(f, v);
      if (e.y) run.template write<T>(e.y, v);
      if (e.next) {
        float next[V];
        run.template channel<T>(next, e.next, n, 1.f);
#pragma unroll
        for (int j = 0; j < V; ++j) v[j] = to_float(from_float<T>(v[j])) * next[j];
        run.template write<T>(e.scaled, v);
      }
    }
  }
}

template <class T>
void launch_epilogue(const EpilogueScaledParams& p, void* stream) {
  const int64_t length = p.channels_last ? p.c : p.pixels, lines = p.channels_last ? p.pixels : p.c;
  const bool wide = p.channels_last ? wide_accesses<T>(length, p.u, p.y, p.d, p.bias, p.next, p.scaled)
                                    : wide_accesses<T>(length, p.u, p.y, p.noise, p.scaled);
  const dim3 grid(blocks_for(lines * ceil_div(length, kVector<T>)), 1, sample_blocks(p.n));
  const Finish f = make_finish(p);
  if (p.channels_last) {
    ATU_LAUNCH((epilogue_kernel<T, true>), grid, kThreads, 0, stream, p, f, wide);
  } else {
    ATU_LAUNCH((epilogue_kernel<T, false>), grid, kThreads, 0, stream, p, f, wide);
  }
}

// ---- modulate into the other layout ---------------------------------------------------------------------------------

// A matrix [rows, cols] of each sample, transposed through shared memory. Channels are the rows, or the columns.
constexpr int kTile = 32, kTileRows = 8;

template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    modulate_transpose_kernel(const T* x, const T* styles, T* out, int64_t samples, int64_t rows, int64_t cols,
                              bool channel_rows) {
  ATU_SHARED(float, tile, [kTile][kTile + 1]);
  const int64_t tiles_per_row = (cols + kTile - 1) / kTile;
  const int64_t row0 = blockIdx.x / tiles_per_row * kTile, col0 = blockIdx.x % tiles_per_row * kTile;
  const int tx = static_cast<int>(threadIdx.x), ty = static_cast<int>(threadIdx.y);
  for (int64_t n = blockIdx.z; n < samples; n += gridDim.z) {
    const T* s = styles + n * (channel_rows ? rows : cols);
    for (int r = ty; r < kTile; r += kTileRows) {
      const int64_t row = row0 + r, col = col0 + tx;
      if (row < rows && col < cols) {
        tile[r][tx] = to_float(x[(n * rows + row) * cols + col]) * to_float(s[channel_rows ? row : col]);
      }
    }
    __syncthreads();
    for (int r = ty; r < kTile; r += kTileRows) {
      const int64_t col = col0 + r, row = row0 + tx;
      if (row < rows && col < cols) out[(n * cols + col) * rows + row] = from_float<T>(tile[tx][r]);
    }
    __syncthreads();
  }
}

template <class T>
void launch_modulate_transpose(const ModulateParams& p, void* stream) {
  const bool channel_rows = !p.channels_last;
  const int64_t rows = channel_rows ? p.c : p.pixels, cols = channel_rows ? p.pixels : p.c;
  const int64_t tiles = ceil_div(rows, kTile) * ceil_div(cols, kTile);
  if (tiles > INT_MAX) throw std::invalid_argument("modulate_cuda: more than 2^41 elements in a sample");
  ATU_LAUNCH(modulate_transpose_kernel<T>, dim3(unsigned(tiles), 1, sample_blocks(p.n)), dim3(kTile, kTileRows), 0,
             stream, static_cast<const T*>(p.x), static_cast<const T*>(p.styles), static_cast<T*>(p.out), p.n, rows,
             cols, channel_rows);
}

// ---- weights --------------------------------------------------------------------------------------------------------

// Where tap k of row (o, c) of the weight lies, and the row of what lies at i.
struct WeightIndex {
  int64_t inner, taps;
  bool channels_last;
  __device__ __forceinline__ int64_t at(int64_t row, int64_t k) const {
    return channels_last ? (row / inner * taps + k) * inner + row % inner : row * taps + k;
  }
  // Index: uint32_t where that is enough (64-bit divisions are slow).
  template <class Index>
  __device__ __forceinline__ int64_t row(int64_t i) const {
    const Index at = Index(i), c = Index(inner), k = Index(taps);
    return channels_last ? at / (k * c) * c + at % c : at / k;
  }
};

template <class T>
__device__ __forceinline__ float sum_of_squares(const T* w, const WeightIndex& index, int64_t row) {
  float sum = 0.f;
  for (int64_t k = 0; k < index.taps; ++k) {
    const float v = to_float(w[index.at(row, k)]);
    sum += v * v;
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) square_sum_kernel(const T* w, T* q, int64_t rows, WeightIndex index) {
  for (int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x; row < rows; row += int64_t{gridDim.x} * kThreads) {
    q[row] = from_float<T>(sum_of_squares(w, index, row));
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads)
    square_sum_grad_kernel(const T* w, const T* dq, T* dw, int64_t count, WeightIndex index) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += int64_t{gridDim.x} * kThreads) {
    dw[i] = from_float<T>(2.f * to_float(dq[index.row<Index>(i)]) * to_float(w[i]));
  }
}

// A block makes the coefficients of one output channel: q of a chunk of input channels goes to shared memory, then
// each warp multiplies it with the squared styles of its samples.
constexpr int kSamplesPerWarp = 4, kDemodulateChunk = 1024;

template <class T>
__global__ void __launch_bounds__(kThreads) demodulate_kernel(const __grid_constant__ DemodulateParams p) {
  ATU_SHARED(float, q, [kDemodulateChunk]);
  constexpr int kWarps = kThreads / 32;
  const int64_t o = blockIdx.x;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const WeightIndex index{p.c, p.taps, p.channels_last};
  const T* styles = static_cast<const T*>(p.styles);
  for (int64_t n0 = 0; n0 < p.n; n0 += kWarps * kSamplesPerWarp) {
    float sum[kSamplesPerWarp] = {};
    for (int64_t c0 = 0; c0 < p.c; c0 += kDemodulateChunk) {
      const int chunk = static_cast<int>(p.c - c0 < kDemodulateChunk ? p.c - c0 : kDemodulateChunk);
      for (int c = static_cast<int>(threadIdx.x); c < chunk; c += kThreads) {
        q[c] = sum_of_squares(static_cast<const T*>(p.w), index, o * p.c + c0 + c);
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kSamplesPerWarp; ++i) {
        const int64_t n = n0 + warp + i * kWarps;
        if (n >= p.n) continue;
        for (int c = lane; c < chunk; c += 32) {
          const float s = to_float(styles[n * p.c + c0 + c]);
          sum[i] += s * s * q[c];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kSamplesPerWarp; ++i) {
      for (int lanes = 16; lanes > 0; lanes /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], lanes);
      const int64_t n = n0 + warp + i * kWarps;
      if (lane == 0 && n < p.n) static_cast<T*>(p.d)[n * p.o + o] = from_float<T>(1.f / sqrtf(sum[i] + 1e-8f));
    }
  }
}

}  // namespace

void epilogue_scaled_cuda(const EpilogueScaledParams& p, void* stream) {
  if (p.n * p.c * p.pixels == 0) return;
  for_dtype(p.dtype, "epilogue_cuda", [&](auto t) { launch_epilogue<decltype(t)>(p, stream); });
}

void epilogue_cuda(const EpilogueForwardParams& p, void* stream) {
  epilogue_scaled_cuda({p, nullptr, nullptr}, stream);
}

void modulate_cuda(const ModulateParams& p, void* stream) {
  if (p.n * p.c * p.pixels == 0) return;
  if (p.channels_last == p.out_channels_last) {
    // An epilogue that does nothing but multiply.
    EpilogueForwardParams e{};
    e.dtype = p.dtype, e.act = Act::linear, e.gain = 1, e.clamp = -1;
    e.n = p.n, e.c = p.c, e.pixels = p.pixels, e.channels_last = p.channels_last;
    e.u = p.x, e.d = p.styles, e.y = p.out;
    return epilogue_cuda(e, stream);
  }
  for_dtype(p.dtype, "modulate_cuda", [&](auto t) { launch_modulate_transpose<decltype(t)>(p, stream); });
}

void square_sum_cuda(const SquareSumParams& p, void* stream) {
  if (p.rows == 0) return;
  for_dtype(p.dtype, "square_sum_cuda", [&](auto t) {
    using T = decltype(t);
    ATU_LAUNCH(square_sum_kernel<T>, blocks_for(p.rows), kThreads, 0, stream, static_cast<const T*>(p.w),
               static_cast<T*>(p.q), p.rows, WeightIndex{p.inner, p.taps, p.channels_last});
  });
}

void square_sum_grad_cuda(const SquareSumParams& p, void* stream) {
  if (p.rows * p.taps == 0) return;
  for_dtype(p.dtype, "square_sum_grad_cuda", [&](auto t) {
    using T = decltype(t);
    const int64_t count = p.rows * p.taps;
    const auto *w = static_cast<const T*>(p.w), *dq = static_cast<const T*>(p.dq);
    auto* dw = static_cast<T*>(p.dw);
    const WeightIndex index{p.inner, p.taps, p.channels_last};
    if (count <= UINT_MAX) {
      ATU_LAUNCH((square_sum_grad_kernel<T, uint32_t>), blocks_for(count), kThreads, 0, stream, w, dq, dw, count,
                 index);
    } else {
      ATU_LAUNCH((square_sum_grad_kernel<T, uint64_t>), blocks_for(count), kThreads, 0, stream, w, dq, dw, count,
                 index);
    }
  });
}

void demodulate_cuda(const DemodulateParams& p, void* stream) {
  if (p.n * p.o == 0) return;
  for_dtype(p.dtype, "demodulate_cuda",
            [&](auto t) { ATU_LAUNCH(demodulate_kernel<decltype(t)>, unsigned(p.o), kThreads, 0, stream, p); });
}

}  // namespace atu
