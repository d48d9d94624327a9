// Every pass below runs over tasks (sample, pixel block). A task goes over its channels; contiguous images are walked
// in rows of one channel, channels-last ones in rows of one pixel, kTile channels at a time, so that per-channel
// factors and sums stay in the first-level cache. Absent inputs are read from a row of zeros or ones: no branch in a
// loop.
#include "modulated_conv2d.h"

#include <limits>

#include "cpu_isa.h"
#include "epilogue_act.h"
#include "parallel.h"

namespace atu::ATU_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements a thread, below which waking it costs more than it brings
constexpr int64_t kTile = 256;       // channels

template <typename T>
const T* typed(const void* pointer) {
  return static_cast<const T*>(pointer);
}

template <typename T>
T* typed(void* pointer) {
  return static_cast<T*>(pointer);
}

template <typename T>
constexpr T kZeros[kMaxPixelBlock] = {};

static_assert(kTile <= kMaxPixelBlock);

// `values` from `offset` on, or zeros (at most kMaxPixelBlock are read).
template <typename T>
const T* row_or_zeros(const void* values, int64_t offset) {
  return values ? typed<T>(values) + offset : kZeros<T>;
}

template <typename T>
T value_or(const void* values, int64_t i, T otherwise) {
  return values ? typed<T>(values)[i] : otherwise;
}

// A local copy of `size` values from `offset` on, or of `otherwise`.
template <typename T>
void load_tile(T* tile, const void* values, int64_t offset, int64_t size, T otherwise) {
  for (int64_t i = 0; i < size; ++i) tile[i] = value_or<T>(values, offset + i, otherwise);
}

// body(n, block, first pixel, pixels) for every sample and block of pixels.
template <typename Body>
void for_blocks(int64_t samples, int64_t channels, int64_t pixels, int64_t pixel_block, const Body& body) {
  const int64_t blocks = ceil_div(pixels, pixel_block);
  parallel_for(samples * blocks, threads_for(samples * channels * pixels, kGrain),
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t block = task % blocks, first = block * pixel_block;
                   body(task / blocks, block, first, min64(pixel_block, pixels - first));
                 }
               });
}

// out[n, c] = sum of partials[n, block, c] in block order. Without blocks: zeros.
template <typename T>
void sum_blocks(const double* partials, void* out, int64_t samples, int64_t channels, int64_t blocks) {
  if (!out) return;
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += partials[(n * blocks + b) * channels + c];
      typed<T>(out)[n * channels + c] = T(sum);
    }
  }
}

// ---- q = sum_k w^2 ------------------------------------------------------------------------------------------------

template <typename T>
void square_sum(const SquareSumParams& p) {
  const T* w = typed<T>(p.w);
  T* q = typed<T>(p.q);
  const int64_t taps = p.taps, inner = p.inner;
  if (inner == 0) return;
  parallel_for(p.rows / inner, threads_for(p.rows * taps, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t o = begin; o < end; ++o) {
      const T* wo = w + o * inner * taps;
      T* qo = q + o * inner;
      if (p.channels_last) {
        for (int64_t c = 0; c < inner; ++c) qo[c] = 0;
        for (int64_t k = 0; k < taps; ++k) {
#pragma omp simd
          for (int64_t c = 0; c < inner; ++c) qo[c] += wo[k * inner + c] * wo[k * inner + c];
        }
      } else if (taps == 9) {
#pragma omp simd
        for (int64_t c = 0; c < inner; ++c) {
          T sum = 0;
#pragma GCC unroll 9
          for (int64_t k = 0; k < 9; ++k) sum += wo[c * 9 + k] * wo[c * 9 + k];
          qo[c] = sum;
        }
      } else {
        for (int64_t c = 0; c < inner; ++c) {
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t k = 0; k < taps; ++k) sum += wo[c * taps + k] * wo[c * taps + k];
          qo[c] = sum;
        }
      }
    }
  });
}

template <typename T>
void square_sum_grad(const SquareSumParams& p) {
  const T* w = typed<T>(p.w);
  const T* dq = typed<T>(p.dq);
  T* dw = typed<T>(p.dw);
  const int64_t taps = p.taps, inner = p.inner;
  if (inner == 0) return;
  parallel_for(p.rows / inner, threads_for(p.rows * taps, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t o = begin; o < end; ++o) {
      const T* wo = w + o * inner * taps;
      T* dwo = dw + o * inner * taps;
      const T* dqo = dq + o * inner;
      if (p.channels_last) {
        for (int64_t k = 0; k < taps; ++k) {
#pragma omp simd
          for (int64_t c = 0; c < inner; ++c) dwo[k * inner + c] = 2 * dqo[c] * wo[k * inner + c];
        }
      } else {
        for (int64_t c = 0; c < inner; ++c) {
          const T factor = 2 * dqo[c];
          for (int64_t k = 0; k < taps; ++k) dwo[c * taps + k] = factor * wo[c * taps + k];
        }
      }
    }
  });
}

// ---- out = s x ------------------------------------------------------------------------------------------------------

// One sample from planes to pixels, in squares of kSquare channels by kSquare pixels, which stay in cache.
template <typename T>
void modulate_transposed(const T* x, const T* s, T* out, int64_t channels, int64_t pixels, int64_t begin, int64_t end) {
  constexpr int64_t kSquare = 16;
  for (int64_t p0 = begin; p0 < end; p0 += kSquare) {
    const int64_t p1 = min64(p0 + kSquare, end);
    for (int64_t c0 = 0; c0 < channels; c0 += kSquare) {
      const int64_t c1 = min64(c0 + kSquare, channels);
      if (p1 - p0 == kSquare && c1 - c0 == kSquare) {
        T square[kSquare][kSquare];
        for (int64_t c = 0; c < kSquare; ++c) {
#pragma omp simd
          for (int64_t i = 0; i < kSquare; ++i) square[c][i] = s[c0 + c] * x[(c0 + c) * pixels + p0 + i];
        }
        for (int64_t i = 0; i < kSquare; ++i) {
#pragma omp simd
          for (int64_t c = 0; c < kSquare; ++c) out[(p0 + i) * channels + c0 + c] = square[c][i];
        }
        continue;
      }
      for (int64_t i = p0; i < p1; ++i) {
        for (int64_t c = c0; c < c1; ++c) out[i * channels + c] = s[c] * x[c * pixels + i];
      }
    }
  }
}

template <typename T>
void modulate(const ModulateParams& p) {
  const T* x = typed<T>(p.x);
  const T* s = typed<T>(p.styles);
  T* out = typed<T>(p.out);
  const int64_t channels = p.c, pixels = p.pixels, image = channels * pixels;
  const int threads = threads_for(p.n * image, kGrain);
  if (p.channels_last && p.out_channels_last) {
    parallel_for(p.n * pixels, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const T* sn = s + row / pixels * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) out[row * channels + c] = sn[c] * x[row * channels + c];
      }
    });
  } else if (!p.channels_last && !p.out_channels_last) {
    parallel_for(p.n * channels, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const T factor = s[row];
#pragma omp simd
        for (int64_t i = 0; i < pixels; ++i) out[row * pixels + i] = factor * x[row * pixels + i];
      }
    });
  } else if (p.out_channels_last) {
    for_blocks(p.n, channels, pixels, kMaxPixelBlock, [&](int64_t n, int64_t, int64_t first, int64_t size) {
      modulate_transposed(x + n * image, s + n * channels, out + n * image, channels, pixels, first, first + size);
    });
  } else {
    parallel_for(p.n * channels, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const T* xn = x + row / channels * image + row % channels;
        for (int64_t i = 0; i < pixels; ++i) out[row * pixels + i] = s[row] * xn[i * channels];
      }
    });
  }
}

template <typename T, bool kStyles>
void modulate_grad_planes(const ModulateGradParams& p, int64_t n, int64_t first, int64_t size, double* partial) {
  T unused[kMaxPixelBlock];
  for (int64_t c = 0; c < p.c; ++c) {
    const int64_t offset = (n * p.c + c) * p.pixels + first;
    const T* g = typed<T>(p.grad_out) + offset;
    const T* x = kStyles ? typed<T>(p.x) + offset : nullptr;
    T* dx = p.grad_x ? typed<T>(p.grad_x) + offset : unused;
    const T s = typed<T>(p.styles)[n * p.c + c];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) {
      const T gi = g[i];
      if constexpr (kStyles) sum += gi * x[i];
      dx[i] = gi * s;
    }
    if constexpr (kStyles) partial[c] = sum;
  }
}

template <typename T, bool kStyles>
void modulate_grad_pixels(const ModulateGradParams& p, int64_t n, int64_t first, int64_t size, double* partial) {
  T unused[kTile];
  for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
    const int64_t tile = min64(kTile, p.c - c0);
    const T* s = typed<T>(p.styles) + n * p.c + c0;
    T sum[kTile] = {};
    for (int64_t i = first; i < first + size; ++i) {
      const int64_t offset = (n * p.pixels + i) * p.c + c0;
      const T* g = typed<T>(p.grad_out) + offset;
      const T* x = kStyles ? typed<T>(p.x) + offset : nullptr;
      T* dx = p.grad_x ? typed<T>(p.grad_x) + offset : unused;
#pragma omp simd
      for (int64_t c = 0; c < tile; ++c) {
        const T gi = g[c];
        if constexpr (kStyles) sum[c] += gi * x[c];
        dx[c] = gi * s[c];
      }
    }
    if constexpr (kStyles) {
      for (int64_t c = 0; c < tile; ++c) partial[c0 + c] = sum[c];
    }
  }
}

template <typename T, bool kStyles>
void modulate_grad(const ModulateGradParams& p) {
  const int64_t blocks = ceil_div(p.pixels, p.pixel_block);
  for_blocks(p.n, p.c, p.pixels, p.pixel_block, [&](int64_t n, int64_t block, int64_t first, int64_t size) {
    double* partial = kStyles ? p.partials + (n * blocks + block) * p.c : nullptr;
    if (p.channels_last) {
      modulate_grad_pixels<T, kStyles>(p, n, first, size, partial);
    } else {
      modulate_grad_planes<T, kStyles>(p, n, first, size, partial);
    }
  });
  if constexpr (kStyles) sum_blocks<T>(p.partials, p.grad_styles, p.n, p.c, blocks);
}

// ---- epilogue -------------------------------------------------------------------------------------------------------

template <typename T>
struct Output {
  T alpha, gain, clamp;
  explicit Output(const EpilogueParams& p)
      : alpha(T(p.alpha)), gain(T(p.gain)), clamp(p.clamp < 0 ? std::numeric_limits<T>::infinity() : T(p.clamp)) {}
};

template <Act A, typename T>
T output(T v, const Output<T>& k) {
  const T y = k.gain * act_value<A>(v, k.alpha);
  return y > k.clamp ? k.clamp : (y < -k.clamp ? -k.clamp : y);
}

// gain, or 0 where the output is clamped.
template <Act A, typename T>
T output_gain(T v, const Output<T>& k) {
  return magnitude(k.gain * act_value<A>(v, k.alpha)) >= k.clamp ? T(0) : k.gain;
}

template <typename T, Act A>
void epilogue_planes(const EpilogueForwardParams& p) {
  const Output<T> k(p);
  parallel_for(p.n * p.c, threads_for(p.n * p.c * p.pixels, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const T d = value_or<T>(p.d, row, 1), b = value_or<T>(p.bias, row % p.c, 0);
      for (int64_t first = 0; first < p.pixels; first += kMaxPixelBlock) {
        const int64_t size = min64(kMaxPixelBlock, p.pixels - first);
        const T* noise = row_or_zeros<T>(p.noise, row / p.c * p.noise_stride_n + first);
        const T* u = typed<T>(p.u) + row * p.pixels + first;
        T* y = typed<T>(p.y) + row * p.pixels + first;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) y[i] = output<A>(d * u[i] + noise[i] + b, k);
      }
    }
  });
}

template <typename T, Act A>
void epilogue_pixels(const EpilogueForwardParams& p) {
  const Output<T> k(p);
  for_blocks(p.n, p.c, p.pixels, 64, [&](int64_t n, int64_t, int64_t first, int64_t size) {
    const T* noise = row_or_zeros<T>(p.noise, n * p.noise_stride_n + first);
    T d[kTile], b[kTile];
    for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
      const int64_t tile = min64(kTile, p.c - c0);
      load_tile<T>(d, p.d, n * p.c + c0, tile, 1);
      load_tile<T>(b, p.bias, c0, tile, 0);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t offset = (n * p.pixels + first + i) * p.c + c0;
        const T* u = typed<T>(p.u) + offset;
        T* y = typed<T>(p.y) + offset;
        const T z = noise[i];
#pragma omp simd
        for (int64_t c = 0; c < tile; ++c) y[c] = output<A>(d[c] * u[c] + z + b[c], k);
      }
    }
  });
}

// Where one (sample, block) task of a gradient puts its sums over pixels.
struct Partials {
  double* d;
  double* b;
  template <typename Params>
  Partials(const Params& p, int64_t n, int64_t block, int64_t blocks)
      : d(p.partials ? p.partials + (n * blocks + block) * p.c : nullptr), b(d ? d + p.n * blocks * p.c : nullptr) {}
  void store(int64_t c, double sum_d, double sum_b) const {
    if (d) d[c] = sum_d, b[c] = sum_b;
  }
};

template <typename T>
void store_noise(void* out, int64_t offset, const T* sums, int64_t size) {
  if (!out) return;
  for (int64_t i = 0; i < size; ++i) typed<T>(out)[offset + i] = sums[i];
}

template <typename T, Act A>
void grad_planes(const EpilogueGradParams& p, int64_t n, int64_t first, int64_t size, const Partials& partials) {
  const Output<T> k(p);
  const T* noise = row_or_zeros<T>(p.noise, n * p.noise_stride_n + first);
  T over_channels[kMaxPixelBlock] = {};
  for (int64_t c = 0; c < p.c; ++c) {
    const int64_t row = n * p.c + c, offset = row * p.pixels + first;
    const T d = value_or<T>(p.d, row, 1), b = value_or<T>(p.bias, c, 0);
    const T* u = typed<T>(p.u) + offset;
    const T* dy = typed<T>(p.dy) + offset;
    T* du = typed<T>(p.du) + offset;
    T sum_d = 0, sum_b = 0;
#pragma omp simd reduction(+ : sum_d, sum_b)
    for (int64_t i = 0; i < size; ++i) {
      const T v = d * u[i] + noise[i] + b;
      const T dv = dy[i] * act_slope<A>(v, k.alpha) * output_gain<A>(v, k);
      sum_d += dv * u[i];
      sum_b += dv;
      over_channels[i] += dv;
      du[i] = dv * d;
    }
    partials.store(c, sum_d, sum_b);
  }
  store_noise(p.dnoise, n * p.pixels + first, over_channels, size);
}

template <typename T, Act A>
void grad_pixels(const EpilogueGradParams& p, int64_t n, int64_t first, int64_t size, const Partials& partials) {
  const Output<T> k(p);
  const T* noise = row_or_zeros<T>(p.noise, n * p.noise_stride_n + first);
  T over_channels[kMaxPixelBlock] = {}, d[kTile], b[kTile];
  for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
    const int64_t tile = min64(kTile, p.c - c0);
    load_tile<T>(d, p.d, n * p.c + c0, tile, 1);
    load_tile<T>(b, p.bias, c0, tile, 0);
    T sum_d[kTile] = {}, sum_b[kTile] = {};
    for (int64_t i = 0; i < size; ++i) {
      const int64_t offset = (n * p.pixels + first + i) * p.c + c0;
      const T* u = typed<T>(p.u) + offset;
      const T* dy = typed<T>(p.dy) + offset;
      T* du = typed<T>(p.du) + offset;
      const T z = noise[i];
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < tile; ++c) {
        const T v = d[c] * u[c] + z + b[c];
        const T dv = dy[c] * act_slope<A>(v, k.alpha) * output_gain<A>(v, k);
        sum_d[c] += dv * u[c];
        sum_b[c] += dv;
        sum += dv;
        du[c] = dv * d[c];
      }
      over_channels[i] += sum;
    }
    for (int64_t c = 0; c < tile; ++c) partials.store(c0 + c, sum_d[c], sum_b[c]);
  }
  store_noise(p.dnoise, n * p.pixels + first, over_channels, size);
}

// The second gradient at one element: writes d_dy and d_u, gives back the element's terms of d_d and d_b.
template <typename T>
struct Grad2Terms {
  T d, b;
};

template <Act A, typename T>
Grad2Terms<T> grad2_element(const Output<T>& k, T v, T u, T dy, T d, T gu, T gd, T shift, T* d_dy, T* d_u) {
  const T gain = output_gain<A>(v, k);
  const T f = act_slope<A>(v, k.alpha) * gain;
  const T t = gu * d + gd * u + shift;
  const T e = kPiecewiseLinear<A> ? T(0) : dy * act_curvature<A>(v) * gain * t;
  *d_dy = f * t;
  *d_u = dy * f * gd + e * d;
  return {dy * f * gu + e * u, e};
}

template <typename T, Act A>
void grad2_planes(const EpilogueGrad2Params& p, int64_t n, int64_t first, int64_t size, const Partials& partials) {
  const Output<T> k(p);
  const T* noise = row_or_zeros<T>(p.noise, n * p.noise_stride_n + first);
  const T* gn = row_or_zeros<T>(p.gn, n * p.pixels + first);
  T over_channels[kMaxPixelBlock] = {};
  for (int64_t c = 0; c < p.c; ++c) {
    const int64_t row = n * p.c + c, offset = row * p.pixels + first;
    const T d = value_or<T>(p.d, row, 1), b = value_or<T>(p.bias, c, 0);
    const T gd = value_or<T>(p.gd, row, 0), gb = value_or<T>(p.gb, row, 0);
    const T* u = typed<T>(p.u) + offset;
    const T* dy = typed<T>(p.dy) + offset;
    const T* gu = row_or_zeros<T>(p.gu, offset);
    T* d_dy = typed<T>(p.d_dy) + offset;
    T* d_u = typed<T>(p.d_u) + offset;
    T sum_d = 0, sum_b = 0;
#pragma omp simd reduction(+ : sum_d, sum_b)
    for (int64_t i = 0; i < size; ++i) {
      const T v = d * u[i] + noise[i] + b;
      const auto term = grad2_element<A>(k, v, u[i], dy[i], d, gu[i], gd, gn[i] + gb, d_dy + i, d_u + i);
      sum_d += term.d;
      sum_b += term.b;
      over_channels[i] += term.b;
    }
    partials.store(c, sum_d, sum_b);
  }
  store_noise(p.d_noise, n * p.pixels + first, over_channels, size);
}

template <typename T, Act A>
void grad2_pixels(const EpilogueGrad2Params& p, int64_t n, int64_t first, int64_t size, const Partials& partials) {
  const Output<T> k(p);
  const T* noise = row_or_zeros<T>(p.noise, n * p.noise_stride_n + first);
  const T* gn = row_or_zeros<T>(p.gn, n * p.pixels + first);
  T over_channels[kMaxPixelBlock] = {}, d[kTile], b[kTile], gd[kTile], gb[kTile];
  for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
    const int64_t tile = min64(kTile, p.c - c0);
    load_tile<T>(d, p.d, n * p.c + c0, tile, 1);
    load_tile<T>(b, p.bias, c0, tile, 0);
    load_tile<T>(gd, p.gd, n * p.c + c0, tile, 0);
    load_tile<T>(gb, p.gb, n * p.c + c0, tile, 0);
    T sum_d[kTile] = {}, sum_b[kTile] = {};
    for (int64_t i = 0; i < size; ++i) {
      const int64_t offset = (n * p.pixels + first + i) * p.c + c0;
      const T* u = typed<T>(p.u) + offset;
      const T* dy = typed<T>(p.dy) + offset;
      const T* gu = row_or_zeros<T>(p.gu, offset);
      T* d_dy = typed<T>(p.d_dy) + offset;
      T* d_u = typed<T>(p.d_u) + offset;
      const T z = noise[i], gz = gn[i];
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < tile; ++c) {
        const T v = d[c] * u[c] + z + b[c];
        const auto term = grad2_element<A>(k, v, u[c], dy[c], d[c], gu[c], gd[c], gz + gb[c], d_dy + c, d_u + c);
        sum_d[c] += term.d;
        sum_b[c] += term.b;
        sum += term.b;
      }
      over_channels[i] += sum;
    }
    for (int64_t c = 0; c < tile; ++c) partials.store(c0 + c, sum_d[c], sum_b[c]);
  }
  store_noise(p.d_noise, n * p.pixels + first, over_channels, size);
}

// Runs planes or pixels over all tasks, then adds the partial sums.
template <typename T, typename Params>
void reduce_pass(const Params& p, void (*task)(const Params&, int64_t, int64_t, int64_t, const Partials&), void* sum_d,
                 void* sum_b) {
  const int64_t blocks = ceil_div(p.pixels, p.pixel_block);
  for_blocks(p.n, p.c, p.pixels, p.pixel_block, [&](int64_t n, int64_t block, int64_t first, int64_t size) {
    task(p, n, first, size, Partials(p, n, block, blocks));
  });
  sum_blocks<T>(p.partials, sum_d, p.n, p.c, blocks);
  sum_blocks<T>(p.partials + p.n * blocks * p.c, sum_b, p.n, p.c, blocks);
}

// body.operator()<T, A>() for the dtype and the activation.
template <typename Body>
void dispatch(const EpilogueParams& p, const Body& body) {
  const auto with = [&]<Act A>() {
    if (p.dtype == DType::f64) return body.template operator()<double, A>();
    return body.template operator()<float, A>();
  };
  switch (p.act) {
    case Act::linear:
      return with.template operator()<Act::linear>();
    case Act::relu:
      return with.template operator()<Act::relu>();
    case Act::lrelu:
      return with.template operator()<Act::lrelu>();
    case Act::tanh:
      return with.template operator()<Act::tanh>();
    case Act::sigmoid:
      return with.template operator()<Act::sigmoid>();
    case Act::elu:
      return with.template operator()<Act::elu>();
    case Act::selu:
      return with.template operator()<Act::selu>();
    case Act::softplus:
      return with.template operator()<Act::softplus>();
    case Act::swish:
      return with.template operator()<Act::swish>();
  }
}

}  // namespace

void square_sum_cpu(const SquareSumParams& p) {
  p.dtype == DType::f64 ? square_sum<double>(p) : square_sum<float>(p);
}

void square_sum_grad_cpu(const SquareSumParams& p) {
  p.dtype == DType::f64 ? square_sum_grad<double>(p) : square_sum_grad<float>(p);
}

void modulate_cpu(const ModulateParams& p) {
  p.dtype == DType::f64 ? modulate<double>(p) : modulate<float>(p);
}

void modulate_grad_cpu(const ModulateGradParams& p) {
  const auto with = [&]<bool kStyles>() {
    p.dtype == DType::f64 ? modulate_grad<double, kStyles>(p) : modulate_grad<float, kStyles>(p);
  };
  p.grad_styles ? with.operator()<true>() : with.operator()<false>();
}

void epilogue_cpu(const EpilogueForwardParams& p) {
  dispatch(p, [&]<typename T, Act A>() { p.channels_last ? epilogue_pixels<T, A>(p) : epilogue_planes<T, A>(p); });
}

void epilogue_grad_cpu(const EpilogueGradParams& p) {
  dispatch(p, [&]<typename T, Act A>() {
    reduce_pass<T>(p, p.channels_last ? grad_pixels<T, A> : grad_planes<T, A>, p.dd, p.db);
  });
}

void epilogue_grad2_cpu(const EpilogueGrad2Params& p) {
  dispatch(p, [&]<typename T, Act A>() {
    reduce_pass<T>(p, p.channels_last ? grad2_pixels<T, A> : grad2_planes<T, A>, p.d_d, p.d_b);
  });
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(square_sum_cpu, SquareSumParams)
ATU_CPU_ENTRY(square_sum_grad_cpu, SquareSumParams)
ATU_CPU_ENTRY(modulate_cpu, ModulateParams)
ATU_CPU_ENTRY(modulate_grad_cpu, ModulateGradParams)
ATU_CPU_ENTRY(epilogue_cpu, EpilogueForwardParams)
ATU_CPU_ENTRY(epilogue_grad_cpu, EpilogueGradParams)
ATU_CPU_ENTRY(epilogue_grad2_cpu, EpilogueGrad2Params)
