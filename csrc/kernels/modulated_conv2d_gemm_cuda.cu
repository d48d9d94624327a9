// The contract and the math are in modulated_conv2d_gemm.h.
//
// A block multiplies Rows pixels x Cols output channels. Shared memory holds Stages slabs of the K axis, each 64 bytes
// deep (32 16-bit or 16 tf32 elements of one tap): x tile [Rows][64 B], w tile [Cols][64 B], in_scale [64 B]. The slabs
// are filled by cp.async while older ones are multiplied; one barrier a slab. A row's four 16-byte chunks are stored
// at chunk ^ (row / 2 % 4), so that the eight rows that one ldmatrix phase reads lie in different banks.
//
// The fragments of m16n8k16 (16 bit) and m16n8k8 (tf32) are the same in 32-bit words: with g = lane / 4, t = lane % 4,
// words t and t + 4 of a 32-byte K step, of rows g, g + 8 (x) and of column g (w). So one loop serves all dtypes, and
// a lane needs words t and t + 4 of in_scale.
//
// Tails: pixels past the image, taps outside it, channels past C and output channels past O are loaded as zeros
// (in_scale past C: zero or one) and not stored.
#include <climits>
#include <cstring>
#include <stdexcept>

#include "modulated_conv2d_cuda.cuh"
#include "modulated_conv2d_gemm.h"

namespace atu {
namespace {

using namespace cuda;

constexpr int kSlabBytes = 64;
constexpr int kChunks = kSlabBytes / 16;

// Warps WarpsM x WarpsN, each with TilesM x TilesN products of 16 x 8.
template <int WarpsM, int WarpsN, int TilesM, int TilesN, int StageCount>
struct Tile {
  static constexpr int warps_m = WarpsM, warps_n = WarpsN, tiles_m = TilesM, tiles_n = TilesN, stages = StageCount;
  static constexpr int threads = 32 * WarpsM * WarpsN;
  static constexpr int warp_rows = 16 * TilesM, warp_cols = 8 * TilesN;
  static constexpr int rows = WarpsM * warp_rows, cols = WarpsN * warp_cols;
  static constexpr int stage_bytes = (rows + cols + 1) * kSlabBytes;
  // Floats; the output tile passes through shared memory by warp rows. 8 more than a row: a half-warp stores 8 bytes a
  // lane to four rows, and these then lie in different banks.
  static constexpr int staging_stride = cols + 8;
  static constexpr int staging_bytes = warp_rows * staging_stride * 4;
  static constexpr int shared_bytes = stages * stage_bytes > staging_bytes ? stages* stage_bytes : staging_bytes;
  static constexpr int row_step = threads / kChunks;  // rows that the block's threads fill at a time
  static_assert(rows % row_step == 0 && cols % row_step == 0 && tiles_n % 2 == 0);
};
using SmallTile = Tile<2, 2, 2, 4, 4>;
using LargeTile = Tile<2, 4, 4, 4, 4>;

struct Kernel {
  const void *x, *w, *in_scale, *out_scale, *noise, *bias;
  void *u, *y;
  int64_t out_c, in_row, in_image, w_row;  // in_row = W C, in_image = H W C, w_row = kh kw C
  int64_t pixels, noise_stride_n;
  int64_t first_tile;
  unsigned pixel_tiles, channel_tiles;
  int in_c, in_h, in_w, out_w, kernel_h, kernel_w, stride, pad_y, pad_x;
  bool wide_out;  // 16-byte accesses along out_c
  Finish finish;
};

__device__ __forceinline__ int slab_offset(int row, int chunk) {
  return row * kSlabBytes + ((chunk ^ (row >> 1 & (kChunks - 1))) << 4);
}

// The same chunk of a row that lies a multiple of 8 further down has the same place in its row.
template <int Rows>
__device__ __forceinline__ int row_offset(int i) {
  static_assert(Rows % 8 == 0);
  return i * Rows * kSlabBytes;
}

// One 16-byte chunk from global to shared memory: elements [0, count) of `source`, zeros after them.
template <class T, bool Wide>
__device__ __forceinline__ void copy_chunk(unsigned char* target, const T* source, int count) {
  if constexpr (Wide) {
    cp_async<16>(target, source, count > 0);
  } else {
    Pack<T> pack;
    uint4 word;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) pack.v[j] = j < count ? source[j] : from_float<T>(0.f);
    memcpy(&word, &pack, 16);
    *reinterpret_cast<uint4*>(target) = word;
  }
}

// A word of x times a word of in_scale, rounded to T (tf32 for float).
template <class T>
__device__ __forceinline__ std::uint32_t scale_word(std::uint32_t x, std::uint32_t s) {
  if constexpr (std::is_same_v<T, float>) {
    return to_tf32(__fmul_rn(__uint_as_float(x), __uint_as_float(s)));
  } else {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    Pair a, b;
    memcpy(&a, &x, 4);
    memcpy(&b, &s, 4);
    a = __hmul2(a, b);
    memcpy(&x, &a, 4);
    return x;
  }
}

template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float>) {
    mma_m16n8k8_tf32(d, a, b);
  } else {
    mma_m16n8k16<T>(d, a, b);
  }
}

// Fills the slabs in the order of K: taps outside, channels inside. A thread copies the same chunk of every
// row_step-th row. Wide: rows of x, w and in_scale are whole chunks, aligned to 16 bytes.
template <class T, class Tile, bool Wide>
class Loader {
 public:
  __device__ Loader(const Kernel& k, unsigned char* shared, int64_t image, int64_t first_pixel, int64_t first_channel)
      : k_(k),
        row_(static_cast<int>(threadIdx.x) / kChunks),
        first_c_(static_cast<int>(threadIdx.x) % kChunks * kVector<T>),
        x_(static_cast<const T*>(k.x) + image * k.in_image),
        in_scale_(k.in_scale ? static_cast<const T*>(k.in_scale) + image * k.in_c : nullptr),
        w_(static_cast<const T*>(k.w) + (first_channel + row_) * k.w_row + first_c_),
        w_rows_(k.out_c - first_channel - row_ < Tile::cols ? static_cast<int>(k.out_c - first_channel) - row_
                                                            : Tile::cols),
        c_(first_c_) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int64_t p = first_pixel + row_ + i * Tile::row_step;
      const bool inside = p < k.pixels;
      y_[i] = inside ? static_cast<int>(p / k.out_w) * k.stride - k.pad_y : INT_MIN / 2;
      x_pos_[i] = inside ? static_cast<int>(p % k.out_w) * k.stride - k.pad_x : 0;
    }
    if (!in_scale_) fill_in_scale_with_ones(shared);
  }

  __device__ __forceinline__ void load(unsigned char* stage) {
    const int chunk = first_c_ / kVector<T>, target = slab_offset(row_, chunk);
    const int left = k_.in_c - c_;  // channels from this chunk on
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int iy = y_[i] + ky_, ix = x_pos_[i] + kx_;
      const bool inside = static_cast<unsigned>(iy) < static_cast<unsigned>(k_.in_h) &&
                          static_cast<unsigned>(ix) < static_cast<unsigned>(k_.in_w) && left > 0;
      const T* source = inside ? x_ + (iy * k_.in_row + int64_t{ix} * k_.in_c + c_) : x_;
      copy_chunk<T, Wide>(stage + target + row_offset<Tile::row_step>(i), source, inside ? left : 0);
    }
    unsigned char* w_tile = stage + Tile::rows * kSlabBytes;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const bool inside = i * Tile::row_step < w_rows_ && left > 0;
      const T* source = inside ? w_ + i * Tile::row_step * k_.w_row : static_cast<const T*>(k_.w);
      copy_chunk<T, Wide>(w_tile + target + row_offset<Tile::row_step>(i), source, inside ? left : 0);
    }
    if (in_scale_ && row_ == 0) {
      const T* source = left > 0 ? in_scale_ + c_ : in_scale_;
      copy_chunk<T, Wide>(w_tile + Tile::cols * kSlabBytes + chunk * 16, source, left);
    }
    advance();
  }

 private:
  static constexpr int kPixels = Tile::rows / Tile::row_step, kChannels = Tile::cols / Tile::row_step;
  static constexpr int kDepth = kSlabBytes / static_cast<int>(sizeof(T));

  __device__ __forceinline__ void advance() {
    c_ += kDepth;
    w_ += kDepth;
    if (c_ - first_c_ < k_.in_c) return;
    w_ += k_.in_c - (c_ - first_c_);
    c_ = first_c_;
    if (++kx_ < k_.kernel_w) return;
    kx_ = 0;
    ++ky_;
  }

  __device__ void fill_in_scale_with_ones(unsigned char* shared) {
    for (int i = static_cast<int>(threadIdx.x); i < Tile::stages * kDepth; i += Tile::threads) {
      unsigned char* scales = shared + i / kDepth * Tile::stage_bytes + (Tile::rows + Tile::cols) * kSlabBytes;
      reinterpret_cast<T*>(scales)[i % kDepth] = from_float<T>(1.f);
    }
  }

  const Kernel& k_;
  const int row_, first_c_;
  const T* const x_;
  const T* const in_scale_;
  const T* w_;                       // of this thread's first row, at the tap and channel to load next
  const int w_rows_;                 // rows of w from the first row to the last there is
  int c_;                            // channel to load next
  int y_[kPixels], x_pos_[kPixels];  // of tap (0, 0)
  int ky_ = 0, kx_ = 0;
};

template <class Tile>
using Accumulators = float[Tile::tiles_m][Tile::tiles_n][4];

// Where this lane's rows for ldmatrix begin in a slab, of the warp's first x and w fragments.
struct LaneOffsets {
  int x, w;
};

template <class Tile>
__device__ __forceinline__ LaneOffsets lane_offsets(int warp_m, int warp_n) {
  const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8, row = lane % 8;
  // x: matrices (rows 0-7, words 0-3), (8-15, 0-3), (0-7, 4-7), (8-15, 4-7): a[0..3] of one product;
  // w: (columns 0-7, words 0-3), (0-7, 4-7), (8-15, 0-3), (8-15, 4-7): b[0..1] of two products.
  return {slab_offset(warp_m * Tile::warp_rows + matrix % 2 * 8 + row, matrix / 2),
          Tile::rows * kSlabBytes + slab_offset(warp_n * Tile::warp_cols + matrix / 2 * 8 + row, matrix % 2)};
}

// accumulators += slab of x, scaled, times slab of w.
template <class T, class Tile>
__device__ __forceinline__ void multiply_slab(Accumulators<Tile>& sum, const unsigned char* stage, LaneOffsets lane) {
  const auto* scales =
      reinterpret_cast<const std::uint32_t*>(stage + (Tile::rows + Tile::cols) * kSlabBytes) + threadIdx.x % 4;
#pragma unroll
  for (int step = 0; step < kChunks / 2; ++step) {
    const std::uint32_t scale[2] = {scales[step * 8], scales[step * 8 + 4]};
    const int next_chunks = step << 5;  // step * 2 chunks further, before the exchange of chunks
    std::uint32_t w[Tile::tiles_n][2];
#pragma unroll
    for (int j = 0; j < Tile::tiles_n; j += 2) {
      std::uint32_t r[4];
      ldmatrix<4>(r, stage + (lane.w ^ next_chunks) + row_offset<8>(j));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[j + i / 2][i % 2] = std::is_same_v<T, float> ? to_tf32(__uint_as_float(r[i])) : r[i];
      }
    }
#pragma unroll
    for (int i = 0; i < Tile::tiles_m; ++i) {
      std::uint32_t x[4];
      ldmatrix<4>(x, stage + (lane.x ^ next_chunks) + row_offset<16>(i));
#pragma unroll
      for (int r = 0; r < 4; ++r) x[r] = scale_word<T>(x[r], scale[r / 2]);
#pragma unroll
      for (int j = 0; j < Tile::tiles_n; ++j) multiply<T>(sum[i][j], x, w[j]);
    }
  }
}

// One vector of output channels of one pixel: u, rounded to T, to y.
template <class T>
__device__ __forceinline__ void finish_vector(const Kernel& k, float (&v)[kVector<T>], int64_t image, int64_t pixel,
                                              int64_t channel) {
  constexpr int V = kVector<T>;
  const int count = k.out_c - channel < V ? static_cast<int>(k.out_c - channel) : V;
  const int64_t at = (image * k.pixels + pixel) * k.out_c + channel;
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = to_float(from_float<T>(v[j]));
  if (k.u) store(static_cast<T*>(k.u) + at, v, count, k.wide_out);
  if (!k.y) return;
  float d[V], bias[V], noise = 0.f;
  fill(d, 1.f);
  fill(bias, 0.f);
  if (k.out_scale) load(d, static_cast<const T*>(k.out_scale) + image * k.out_c + channel, count, k.wide_out);
  if (k.bias) load(bias, static_cast<const T*>(k.bias) + channel, count, k.wide_out);
  if (k.noise) noise = to_float(static_cast<const T*>(k.noise)[image * k.noise_stride_n + pixel]);
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = affine(v[j], d[j], noise, bias[j]);
  finish(k.finish, v);
  store(static_cast<T*>(k.y) + at, v, count, k.wide_out);
}

// The tile goes through shared memory, one row of warps at a time, so that global accesses are 16 bytes wide.
template <class T, class Tile>
__device__ __forceinline__ void write_tile(const Kernel& k, const Accumulators<Tile>& sum, unsigned char* shared,
                                           int warp_m, int warp_n, int64_t image, int64_t first_pixel,
                                           int64_t first_channel) {
  constexpr int V = kVector<T>, kVectors = Tile::cols / V;
  auto* staging = reinterpret_cast<float*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int pass = 0; pass < Tile::warps_m; ++pass) {
    if (warp_m == pass) {
#pragma unroll
      for (int i = 0; i < Tile::tiles_m; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::tiles_n; ++j) {
          float* target = staging + (i * 16 + g) * Tile::staging_stride + warp_n * Tile::warp_cols + j * 8 + 2 * t;
          *reinterpret_cast<float2*>(target) = make_float2(sum[i][j][0], sum[i][j][1]);
          target += 8 * Tile::staging_stride;
          *reinterpret_cast<float2*>(target) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < Tile::warp_rows * kVectors; i += Tile::threads) {
      const int row = i / kVectors, column = i % kVectors * V;
      const int64_t pixel = first_pixel + pass * Tile::warp_rows + row, channel = first_channel + column;
      if (pixel >= k.pixels || channel >= k.out_c) continue;
      float v[V];
      load(v, staging + row * Tile::staging_stride + column, V, true);
      finish_vector<T>(k, v, image, pixel, channel);
    }
    __syncthreads();
  }
}

template <class T, class Tile, bool WideIn>
__global__ void __launch_bounds__(Tile::threads, Tile::threads <= 128 ? 4 : 2)
    modulated_conv2d_gemm_kernel(const __grid_constant__ Kernel k) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  ATU_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t block = k.first_tile + blockIdx.x;
  const int64_t first_channel = block % k.channel_tiles * Tile::cols;
  const int64_t first_pixel = block / k.channel_tiles % k.pixel_tiles * Tile::rows;
  const int64_t image = block / k.channel_tiles / k.pixel_tiles;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp / Tile::warps_n, warp_n = warp % Tile::warps_n;

  constexpr int kDepth = kSlabBytes / static_cast<int>(sizeof(T));
  const int slabs = k.kernel_h * k.kernel_w * ((k.in_c + kDepth - 1) / kDepth);
  Loader<T, Tile, WideIn> loader(k, shared, image, first_pixel, first_channel);
#pragma unroll 1
  for (int s = 0; s < Tile::stages - 1; ++s) {
    if (s < slabs) loader.load(shared + s * Tile::stage_bytes);
    cp_async_commit();
  }

  const LaneOffsets lane = lane_offsets<Tile>(warp_m, warp_n);
  Accumulators<Tile> sum = {};
  int read = 0, write = Tile::stages - 1;
#pragma unroll 1
  for (int s = 0; s < slabs; ++s) {
    cp_async_wait<Tile::stages - 2>();  // slab s has landed, for this thread;
    __syncthreads();                    // for all; and all are done with slab s - 1, whose place is filled next
    if (s + Tile::stages - 1 < slabs) loader.load(shared + write * Tile::stage_bytes);
    cp_async_commit();  // also without a load, so that the count of groups stays in step
    multiply_slab<T, Tile>(sum, shared + read * Tile::stage_bytes, lane);
    read = read + 1 == Tile::stages ? 0 : read + 1;
    write = write + 1 == Tile::stages ? 0 : write + 1;
  }
  __syncthreads();  // the last slab has been read: its memory takes the output tile
  write_tile<T, Tile>(k, sum, shared, warp_m, warp_n, image, first_pixel, first_channel);
#else
  __trap();  // the dispatcher keeps these devices on the library convolution
#endif
}

template <class T, class Tile>
void launch(const ModulatedGemmParams& p, void* stream) {
  constexpr int V = kVector<T>;
  Kernel k;
  k.x = p.x, k.w = p.w, k.in_scale = p.in_scale, k.out_scale = p.out_scale, k.noise = p.noise, k.bias = p.bias;
  k.u = p.u, k.y = p.y;
  k.in_c = int(p.in_c), k.out_c = p.out_c, k.w_row = p.kernel_h * p.kernel_w * p.in_c;
  k.in_row = p.in_w * p.in_c, k.in_image = p.in_h * k.in_row;
  k.pixels = p.out_h * p.out_w, k.noise_stride_n = p.noise_stride_n;
  k.in_h = int(p.in_h), k.in_w = int(p.in_w), k.out_w = int(p.out_w);
  k.kernel_h = int(p.kernel_h), k.kernel_w = int(p.kernel_w), k.stride = int(p.stride);
  k.pad_y = int(p.pad_y), k.pad_x = int(p.pad_x);
  const bool wide_in = p.in_c % V == 0 && aligned16(p.x) && aligned16(p.w) && aligned16(p.in_scale);
  k.wide_out = p.out_c % V == 0 && aligned16(p.u) && aligned16(p.y) && aligned16(p.out_scale) && aligned16(p.bias);
  k.finish = {p.act, float(p.alpha), float(p.gain), float(p.clamp)};
  k.pixel_tiles = unsigned(ceil_div(k.pixels, Tile::rows));
  k.channel_tiles = unsigned(ceil_div(k.out_c, Tile::cols));

  const auto kernel =
      wide_in ? modulated_conv2d_gemm_kernel<T, Tile, true> : modulated_conv2d_gemm_kernel<T, Tile, false>;
  if (Tile::shared_bytes > 48 * 1024) allow_dynamic_shared(kernel, Tile::shared_bytes);
  const int64_t tiles = p.n * k.pixel_tiles * k.channel_tiles;
  for (k.first_tile = 0; k.first_tile < tiles; k.first_tile += INT_MAX) {
    const unsigned grid = unsigned(min64(tiles - k.first_tile, INT_MAX));
    ATU_LAUNCH(kernel, grid, Tile::threads, Tile::shared_bytes, stream, k);
  }
}

// The large tile reuses a loaded element twice as often; the small one where the large would leave the device idle or
// work on padding.
bool want_large(const ModulatedGemmParams& p) {
  if (p.tile != GemmTile::automatic) return p.tile == GemmTile::large;
  constexpr int64_t kBlocksToFill = 128;  // about the number of multiprocessors of a large device
  const int64_t tiles = p.n * ceil_div(p.out_h * p.out_w, LargeTile::rows) * ceil_div(p.out_c, LargeTile::cols);
  return p.out_c > SmallTile::cols && tiles >= kBlocksToFill;
}

template <class T>
void launch(const ModulatedGemmParams& p, void* stream) {
  return want_large(p) ? launch<T, LargeTile>(p, stream) : launch<T, SmallTile>(p, stream);
}

}  // namespace

void modulated_conv2d_gemm_cuda(const ModulatedGemmParams& p, void* stream) {
  if (p.n * p.out_h * p.out_w * p.out_c == 0) return;
  switch (p.dtype) {
    case DType::f32:
      return launch<float>(p, stream);
    case DType::f16:
      return launch<__half>(p, stream);
    case DType::bf16:
      return launch<__nv_bfloat16>(p, stream);
    case DType::f64:
      break;
  }
  throw std::invalid_argument("modulated_conv2d_gemm_cuda: expected f32, f16 or bf16, got f64");
}

}  // namespace atu
