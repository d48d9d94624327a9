// Weights and input of the layer: q = sum_k w^2, out = s x, and their gradients.
#include "modulated_conv2d_cpu.h"

#include "cpu_isa.h"

namespace atu::ATU_ISA {
namespace {

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

}  // namespace

void square_sum_cpu(const SquareSumParams& p) {
  with_type(p.dtype, [&]<typename T>() { square_sum<T>(p); });
}

void square_sum_grad_cpu(const SquareSumParams& p) {
  with_type(p.dtype, [&]<typename T>() { square_sum_grad<T>(p); });
}

void modulate_cpu(const ModulateParams& p) {
  with_type(p.dtype, [&]<typename T>() { modulate<T>(p); });
}

void modulate_grad_cpu(const ModulateGradParams& p) {
  with_type(p.dtype, [&]<typename T>() { p.grad_styles ? modulate_grad<T, true>(p) : modulate_grad<T, false>(p); });
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(square_sum_cpu, SquareSumParams)
ATU_CPU_ENTRY(square_sum_grad_cpu, SquareSumParams)
ATU_CPU_ENTRY(modulate_cpu, ModulateParams)
ATU_CPU_ENTRY(modulate_grad_cpu, ModulateGradParams)
