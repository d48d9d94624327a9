// upfirdn2d on the device; the math is in upfirdn2d.h.
//
// Three kernels:
//   tiled     planar images, up or down by 1 or 2, up to 8 taps a side. A block loads the inputs of an output tile (of
//             several small planes) to shared memory once. A thread makes a strip of outputs below each other, so that
//             a value read from shared memory serves several of them. Separable filters take two passes within the
//             launch: along x from the tile to a second shared array, then along y.
//   pixels    channels-last images, the same factors and taps. A thread makes a strip for a 16-byte vector of channels;
//             neighbouring threads' inputs overlap in the first-level cache.
//   general   everything else: a thread for each output, reading only the taps that meet a sample.
//
// Bound: bytes in + bytes out. Strip rows: with up 1, output r meets input row rr at tap rr - r down; with up 2, strips
// begin where tap 0 meets a sample, and output r meets input row rr at tap r % 2 + 2 (rr - r / 2 - r % 2).
#include "upfirdn2d.h"

#include "cuda_vector.cuh"

namespace atu {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kMaxTaps = 8;
constexpr int kMaxPlanes = 32;
constexpr int64_t kMaxGrid = 0x7fffffff;

// The tap with which output r of a strip meets row rr of the strip's inputs; negative where there is none.
template <int Up, int Down>
__host__ __device__ constexpr int tap_of(int rr, int r) {
  if (Up == 1) return rr - r * Down;
  const int j = rr - r / 2 - r % 2;
  return j < 0 ? -1 : r % 2 + 2 * j;
}

// Input rows of a strip of `outputs`.
template <int Up, int Down>
__host__ __device__ constexpr int strip_rows(int outputs, int taps) {
  return Up == 1 ? (outputs - 1) * Down + taps : outputs / 2 + (taps + 1) / 2;
}

// acc[r][j] += sum of weights (at weight[tap * weight_stride]) times input rows; load(rr, v) gives V values of row rr.
// Taps is the number of taps where Exact, else a bound on it.
template <class A, int Up, int Down, int Strip, int Taps, bool Exact, int V, class Load>
__device__ __forceinline__ void add_column(A (&acc)[Strip][V], const A* weight, int weight_stride, int taps,
                                           Load load) {
  A w[Taps];
#pragma unroll
  for (int k = 0; k < Taps; ++k) w[k] = Exact || k < taps ? weight[k * weight_stride] : A(0);
#pragma unroll
  for (int rr = 0; rr < strip_rows<Up, Down>(Strip, Taps); ++rr) {
    if (!Exact && rr >= strip_rows<Up, Down>(Strip, taps)) break;
    A v[V];
    load(rr, v);
#pragma unroll
    for (int r = 0; r < Strip; ++r) {
      const int tap = tap_of<Up, Down>(rr, r);
      if (tap < 0 || tap >= Taps || (!Exact && tap >= taps)) continue;
#pragma unroll
      for (int j = 0; j < V; ++j) acc[r][j] += w[tap] * v[j];
    }
  }
}

// The filter as the kernels want it: correlation order, multiplied by the gain. Separable: the taps of one axis.
template <class A>
__device__ __forceinline__ A filter_tap(const Upfirdn2dParams& p, int ky, int kx) {
  const A* f = static_cast<const A*>(p.f);
  const int fw = int(p.filter_w), fh = int(p.filter_h);
  if (!p.flip_filter) ky = fh - 1 - ky, kx = fw - 1 - kx;
  return p.separable ? f[ky] * f[kx] : f[ky * fw + kx];
}

__device__ __forceinline__ int64_t floor_half(int64_t v) {
  return v >> 1;  // arithmetic: rounds down for negative v too
}

// ---- tiled ------------------------------------------------------------------------------------------------------

struct Tiles {
  int w, h;            // of the output tile
  int in_w, in_h;      // of its inputs
  int planes;          // a block
  int across, down;    // tiles of a plane
  int64_t first_y;     // first output row of tile 0: 0, or -1 for the alignment of strips
  int64_t all_planes;  // N C
  int64_t count;       // work items: tiles times groups of planes
};

template <int Up, int Down>
constexpr int kStrip = Up == 1 && Down == 1 ? 8 : 4;

// The first input column that output column ox meets.
template <int Up>
__device__ __forceinline__ int64_t first_column(int64_t position) {
  return Up == 1 ? position : floor_half(position + 1);  // ceil(position / 2)
}

// Blocks a multiprocessor, here and below: told nothing, ptxas aims at more for some types, and spills.
template <class T, int Up, int Down, bool Separable, int Taps, bool Exact>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 3 : 4) tiled_kernel(Upfirdn2dParams p, Tiles t) {
  using A = accumulator_t<T>;
  constexpr int Strip = kStrip<Up, Down>;
  ATU_SHARED(A, filter, [kMaxTaps * kMaxTaps]);
  ATU_SHARED(int64_t, x_base, [kMaxPlanes]);
  ATU_SHARED(int64_t, y_base, [kMaxPlanes]);
  ATU_DYNAMIC_SHARED(A, tile);                  // [planes][in_h][in_w]
  A* rows = tile + t.planes * t.in_h * t.in_w;  // Separable: [planes][in_h][w], filtered along x
  const int tid = int(threadIdx.x), fw = int(p.filter_w), fh = int(p.filter_h);
  if (Separable) {
    const A* f = static_cast<const A*>(p.f);
    if (tid < fw) filter[tid] = f[p.flip_filter ? tid : fw - 1 - tid];
  } else if (tid < fw * fh) {
    filter[tid] = filter_tap<A>(p, tid / fw, tid % fw) * A(p.gain);
  }

  for (int64_t item = blockIdx.x; item < t.count; item += gridDim.x) {
    const int64_t group = item / (t.across * t.down);
    const int tile_index = int(item - group * (t.across * t.down));
    const int64_t ox0 = int64_t(tile_index % t.across) * t.w;
    const int64_t oy0 = t.first_y + int64_t(tile_index / t.across) * t.h;
    const int64_t ix0 = first_column<Up>(ox0 * Down - p.pad_x0);
    const int64_t iy0 = first_column<Up>(oy0 * Down - p.pad_y0);
    if (tid < t.planes) {
      const int64_t plane = group * t.planes + tid, n = plane / p.c, c = plane - n * p.c;
      x_base[tid] = plane < t.all_planes ? n * p.x_stride_n + c * p.x_stride_c : -1;
      y_base[tid] = n * p.y_stride_n + c * p.y_stride_c;
    }
    __syncthreads();

    // Load; whatever lies outside the image is zero. The position is counted on, without divisions.
    const int step_row = kThreads / t.in_w, step_column = kThreads % t.in_w;
    int column = tid % t.in_w, row = tid / t.in_w, plane = 0;
    for (int e = tid; e < t.planes * t.in_h * t.in_w; e += kThreads) {
      while (row >= t.in_h) row -= t.in_h, ++plane;
      const int64_t ix = ix0 + column, iy = iy0 + row, base = x_base[plane];
      const bool inside = base >= 0 && ix >= 0 && ix < p.w && iy >= 0 && iy < p.h;
      tile[e] = inside ? A(to_float(static_cast<const T*>(p.x)[base + iy * p.x_stride_h + ix])) : A(0);
      column += step_column, row += step_row;
      if (column >= t.in_w) column -= t.in_w, ++row;
    }
    __syncthreads();

    if (Separable) {
      for (int e = tid; e < t.planes * t.in_h * t.w; e += kThreads) {
        const int x = e % t.w, line = e / t.w;
        const int64_t position = (ox0 + x) * Down - p.pad_x0;
        const int phase = Up == 1 ? 0 : int(-position & 1);
        const A* in = tile + line * t.in_w + int(first_column<Up>(position) - ix0);
        A sum = A(0);
        for (int k = phase; k < fw; k += Up) sum += filter[k] * *in++;
        rows[e] = sum;
      }
      __syncthreads();
    }

    const int strips = t.h / Strip;
    for (int e = tid; e < t.planes * strips * t.w; e += kThreads) {
      const int x = e % t.w, strip = e / t.w % strips, of_plane = e / t.w / strips;
      const int line = of_plane * t.in_h + (Up == 1 ? strip * Strip * Down : strip * Strip / 2);
      A acc[Strip][1];
#pragma unroll
      for (int r = 0; r < Strip; ++r) acc[r][0] = A(0);
      if (Separable) {
        const A* in = rows + line * t.w + x;
        add_column<A, Up, Down, Strip, Taps, Exact>(acc, filter, 1, fh, [&](int rr, A(&v)[1]) { v[0] = in[rr * t.w]; });
      } else {
        const int64_t position = (ox0 + x) * Down - p.pad_x0;
        const int phase = Up == 1 ? 0 : int(-position & 1);
        const A* in = tile + line * t.in_w + int(first_column<Up>(position) - ix0);
        for (int k = phase; k < fw; k += Up, ++in) {
          add_column<A, Up, Down, Strip, Taps, Exact>(acc, filter + k, fw, fh,
                                                      [&](int rr, A(&v)[1]) { v[0] = in[rr * t.in_w]; });
        }
      }
      const int64_t ox = ox0 + x, oy = oy0 + strip * Strip;
      if (x_base[of_plane] < 0 || ox >= p.out_w) continue;
      T* y = static_cast<T*>(p.y) + y_base[of_plane] + ox;
#pragma unroll
      for (int r = 0; r < Strip; ++r) {
        if (oy + r < 0 || oy + r >= p.out_h) continue;
        y[(oy + r) * p.y_stride_h] = from_float<T>(Separable ? acc[r][0] * A(p.gain) : acc[r][0]);
      }
    }
    __syncthreads();  // the next item's loads overwrite what this one's slower threads still read
  }
}

int power_of_two_at_least(int64_t v, int low, int high) {
  int result = low;
  while (result < high && result < v) result *= 2;
  return result;
}

int even(int64_t v) {
  return int(v + 1) / 2 * 2;
}

// Tile sizes: up to 64 columns and about 32 rows of outputs, so that tiles share a plane out evenly: 65 columns are two
// tiles of 34. Several planes where these are small; within 40 KiB of shared memory. in_w relies on even widths.
template <int Up, int Down>
Tiles make_tiles(const Upfirdn2dParams& p, size_t element, bool separable, size_t& shared) {
  constexpr int strip = kStrip<Up, Down>, strips_wanted = 32 / strip;
  constexpr size_t limit = 40 * 1024;
  Tiles t;
  t.first_y = Up == 2 ? -(p.pad_y0 & 1) : 0;
  t.w = even(ceil_div(p.out_w, ceil_div(p.out_w, 64)));
  const int64_t strips = ceil_div(p.out_h - t.first_y, strip);
  t.h = strip * int(ceil_div(strips, max64(1, (strips + strips_wanted / 2) / strips_wanted)));
  t.planes = int(max64(1, min64(min64(kMaxPlanes, p.n * p.c), kThreads * strip / (t.w * t.h))));
  for (;;) {
    t.in_w = Up == 1 ? (t.w - 1) * Down + int(p.filter_w) : t.w / 2 + int(p.filter_w + 1) / 2;
    t.in_h = strip_rows<Up, Down>(t.h, int(p.filter_h));
    shared = element * size_t(t.planes) * t.in_h * (t.in_w + (separable ? t.w : 0));
    if (shared <= limit) break;
    if (t.planes > 1) {
      t.planes /= 2;
    } else if (t.h > strip) {
      t.h = (t.h / strip + 1) / 2 * strip;
    } else {
      t.w = even(t.w / 2);
    }
  }
  t.across = int(ceil_div(p.out_w, t.w));
  t.down = int(ceil_div(p.out_h - t.first_y, t.h));
  t.all_planes = p.n * p.c;
  t.count = ceil_div(t.all_planes, t.planes) * t.across * t.down;
  return t;
}

template <class T, int Up, int Down>
void launch_tiled(const Upfirdn2dParams& p, void* stream) {
  size_t shared = 0;
  const Tiles t = make_tiles<Up, Down>(p, sizeof(accumulator_t<T>), p.separable, shared);
  const unsigned grid = unsigned(min64(t.count, kMaxGrid));
  if (p.separable) {
    ATU_LAUNCH((tiled_kernel<T, Up, Down, true, kMaxTaps, false>), grid, kThreads, shared, stream, p, t);
    return;
  }
  if constexpr (sizeof(T) < 8) {
    if (p.filter_h == 4) {
      ATU_LAUNCH((tiled_kernel<T, Up, Down, false, 4, true>), grid, kThreads, shared, stream, p, t);
      return;
    }
  }
  ATU_LAUNCH((tiled_kernel<T, Up, Down, false, kMaxTaps, false>), grid, kThreads, shared, stream, p, t);
}

// ---- pixels -----------------------------------------------------------------------------------------------------

constexpr int kPixelStrip = 4;

struct Pixels {
  int lanes;            // threads side by side along the channels; kThreads / lanes outputs along x
  int64_t vectors;      // of a pixel
  int64_t lane_blocks;  // blocks along the channels
  int64_t across;       // blocks along x
  int64_t strips;       // along y
  int64_t first_y;
  int64_t count;  // blocks' work items: lane_blocks times across times strips times N
};

template <class T, int V, class A>
__device__ __forceinline__ void load_channels(const T* p, A (&v)[V]) {
  if constexpr (V == 1) {
    v[0] = to_float(*p);
  } else {
    load_vector(p, 0, V, true, v);
  }
}

// Whole: C and all strides are multiples of a 16-byte vector, and the arrays are aligned to it. Else V is 1.
template <class T, int Up, int Down, int Taps, bool Exact, bool Whole>
__global__ void __launch_bounds__(kThreads) pixels_kernel(Upfirdn2dParams p, Pixels g) {
  using A = accumulator_t<T>;
  constexpr int V = Whole ? kVector<T> : 1;
  ATU_SHARED(A, filter, [kMaxTaps * kMaxTaps]);
  const int tid = int(threadIdx.x), fw = int(p.filter_w), fh = int(p.filter_h);
  if (tid < fw * fh) filter[tid] = filter_tap<A>(p, tid / fw, tid % fw) * A(p.gain);
  __syncthreads();

  for (int64_t item = blockIdx.x; item < g.count; item += gridDim.x) {
    const int64_t lane_block = item % g.lane_blocks, place = item / g.lane_blocks;
    const int64_t strip = place / g.across % g.strips, n = place / g.across / g.strips;
    const int64_t vector = lane_block * g.lanes + tid % g.lanes;
    const int64_t ox = place % g.across * (kThreads / g.lanes) + tid / g.lanes;
    if (vector >= g.vectors || ox >= p.out_w) continue;
    const int64_t oy = g.first_y + strip * kPixelStrip;
    const int64_t position = ox * Down - p.pad_x0;
    const int phase = Up == 1 ? 0 : int(-position & 1);
    const int64_t iy0 = first_column<Up>(oy * Down - p.pad_y0);
    int64_t ix = first_column<Up>(position);
    const T* x = static_cast<const T*>(p.x) + n * p.x_stride_n + vector * V;
    A acc[kPixelStrip][V];
#pragma unroll
    for (int r = 0; r < kPixelStrip; ++r) {
#pragma unroll
      for (int j = 0; j < V; ++j) acc[r][j] = A(0);
    }
    for (int k = phase; k < fw; k += Up, ++ix) {
      if (ix < 0 || ix >= p.w) continue;
      add_column<A, Up, Down, kPixelStrip, Taps, Exact>(acc, filter + k, fw, fh, [&](int rr, A(&v)[V]) {
        const int64_t iy = iy0 + rr;
        if (iy >= 0 && iy < p.h) {
          load_channels(x + iy * p.x_stride_h + ix * p.x_stride_w, v);
        } else {
#pragma unroll
          for (int j = 0; j < V; ++j) v[j] = A(0);
        }
      });
    }
    T* y = static_cast<T*>(p.y) + n * p.y_stride_n + ox * p.y_stride_w + vector * V;
#pragma unroll
    for (int r = 0; r < kPixelStrip; ++r) {
      if (oy + r < 0 || oy + r >= p.out_h) continue;
      if constexpr (V == 1) {
        y[(oy + r) * p.y_stride_h] = from_float<T>(acc[r][0]);
      } else {
        store_vector(y + (oy + r) * p.y_stride_h, 0, V, true, acc[r]);
      }
    }
  }
}

template <class T>
bool whole_vectors(const Upfirdn2dParams& p) {
  constexpr int64_t V = kVector<T>;
  const auto aligned = [](const void* a) { return reinterpret_cast<uintptr_t>(a) % 16 == 0; };
  const int64_t strides = p.x_stride_n | p.x_stride_h | p.x_stride_w | p.y_stride_n | p.y_stride_h | p.y_stride_w;
  return p.c % V == 0 && strides % V == 0 && aligned(p.x) && aligned(p.y);
}

template <class T, int Up, int Down>
void launch_pixels(const Upfirdn2dParams& p, void* stream) {
  const bool whole = whole_vectors<T>(p);
  Pixels g;
  g.vectors = whole ? p.c / kVector<T> : p.c;
  g.lanes = power_of_two_at_least(g.vectors, 1, whole ? 8 : 32);
  g.lane_blocks = ceil_div(g.vectors, g.lanes);
  g.across = ceil_div(p.out_w, kThreads / g.lanes);
  g.first_y = Up == 2 ? -(p.pad_y0 & 1) : 0;
  g.strips = ceil_div(p.out_h - g.first_y, kPixelStrip);
  g.count = g.lane_blocks * g.across * g.strips * p.n;
  const unsigned grid = unsigned(min64(g.count, kMaxGrid));
  if (whole && p.filter_h == 4) {
    ATU_LAUNCH((pixels_kernel<T, Up, Down, 4, true, true>), grid, kThreads, 0, stream, p, g);
  } else if (whole) {
    ATU_LAUNCH((pixels_kernel<T, Up, Down, kMaxTaps, false, true>), grid, kThreads, 0, stream, p, g);
  } else {
    ATU_LAUNCH((pixels_kernel<T, Up, Down, kMaxTaps, false, false>), grid, kThreads, 0, stream, p, g);
  }
}

// ---- general ----------------------------------------------------------------------------------------------------

// Smallest k >= 0 for which position + k is a multiple of up.
__device__ __forceinline__ int64_t first_tap(int64_t position, int64_t up) {
  const int64_t rest = position % up;
  return rest == 0 ? 0 : rest > 0 ? up - rest : -rest;
}

// Index: of an output, uint32_t where that is enough (64-bit divisions are slow).
template <class T, class Index>
__global__ void __launch_bounds__(kThreads, 4) general_kernel(Upfirdn2dParams p, int64_t count) {
  using A = accumulator_t<T>;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    // Neighbouring threads take neighbouring addresses: channels first where they are.
    Index rest = Index(i);
    const auto take = [&](int64_t size) {
      const Index next = rest / Index(size), v = rest - next * Index(size);
      rest = next;
      return int64_t(v);
    };
    int64_t c = p.channels_last ? take(p.c) : 0;
    const int64_t ox = take(p.out_w), oy = take(p.out_h);
    if (!p.channels_last) c = take(p.c);
    const int64_t n = int64_t(rest);
    const int64_t position_x = ox * p.down_x - p.pad_x0, position_y = oy * p.down_y - p.pad_y0;
    const int64_t kx0 = first_tap(position_x, p.up_x), ky0 = first_tap(position_y, p.up_y);
    const int64_t ix0 = (position_x + kx0) / p.up_x, iy0 = (position_y + ky0) / p.up_y;
    const T* x = static_cast<const T*>(p.x) + n * p.x_stride_n + c * p.x_stride_c;
    A sum = A(0);
    for (int64_t ky = ky0, iy = iy0; ky < p.filter_h && iy < p.h; ky += p.up_y, ++iy) {
      if (iy < 0) continue;
      for (int64_t kx = kx0, ix = ix0; kx < p.filter_w && ix < p.w; kx += p.up_x, ++ix) {
        if (ix < 0) continue;
        sum += filter_tap<A>(p, int(ky), int(kx)) * A(to_float(x[iy * p.x_stride_h + ix * p.x_stride_w]));
      }
    }
    static_cast<T*>(p.y)[n * p.y_stride_n + c * p.y_stride_c + oy * p.y_stride_h + ox * p.y_stride_w] =
        from_float<T>(sum * A(p.gain));
  }
}

template <class T>
void launch_general(const Upfirdn2dParams& p, void* stream) {
  const int64_t count = p.n * p.c * p.out_h * p.out_w;
  const unsigned grid = unsigned(min64(ceil_div(count, kThreads), kMaxGrid));
  if (count < int64_t{1} << 32) {
    ATU_LAUNCH((general_kernel<T, uint32_t>), grid, kThreads, 0, stream, p, count);
  } else {
    ATU_LAUNCH((general_kernel<T, uint64_t>), grid, kThreads, 0, stream, p, count);
  }
}

template <class T, int Up, int Down>
void launch_special(const Upfirdn2dParams& p, void* stream) {
  if (p.channels_last) return launch_pixels<T, Up, Down>(p, stream);
  return launch_tiled<T, Up, Down>(p, stream);
}

template <class T>
void launch(const Upfirdn2dParams& p, void* stream) {
  if (p.n * p.c * p.out_h * p.out_w == 0) return;
  const bool square = p.up_x == p.up_y && p.down_x == p.down_y;
  const bool planar_rows = p.channels_last || (p.x_stride_w == 1 && p.y_stride_w == 1);
  if (square && planar_rows && p.filter_w <= kMaxTaps && p.filter_h <= kMaxTaps) {
    if (p.up_x == 1 && p.down_x == 1) return launch_special<T, 1, 1>(p, stream);
    if (p.up_x == 2 && p.down_x == 1) return launch_special<T, 2, 1>(p, stream);
    if (p.up_x == 1 && p.down_x == 2) return launch_special<T, 1, 2>(p, stream);
  }
  return launch_general<T>(p, stream);
}

}  // namespace

void upfirdn2d_cuda(const Upfirdn2dParams& p, void* stream) {
  switch (p.dtype) {
    case DType::f32:
      return launch<float>(p, stream);
    case DType::f64:
      return launch<double>(p, stream);
    case DType::f16:
      return launch<__half>(p, stream);
    case DType::bf16:
      return launch<__nv_bfloat16>(p, stream);
  }
}

}  // namespace atu
