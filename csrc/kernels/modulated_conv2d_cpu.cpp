// Weights and input of the layer: q = sum_k w^2, out = s x, and their gradients.
#include "modulated_conv2d_cpu.h"

#include "cpu_isa.h"

namespace atu::ATU_ISA {
namespace {

// ---- q = sum_k w^2 ------------------------------------------------------------------------------------------------

template <typename S>
void square_sum(const SquareSumParams& p) {
  using T = Compute<S>;
  const S* w = typed<S>(p.w);
  S* q = typed<S>(p.q);
  const int64_t taps = p.taps, inner = p.inner;
  if (inner == 0) return;
  parallel_for(p.rows / inner, threads_for(p.rows * taps, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t o = begin; o < end; ++o) {
      const S* wo = w + o * inner * taps;
      S* qo = q + o * inner;
      if (p.channels_last) {
        for (int64_t c0 = 0; c0 < inner; c0 += kTile) {
          const int64_t tile = min64(kTile, inner - c0);
          T sum[kTile] = {};
          for (int64_t k = 0; k < taps; ++k) {
            const S* wk = wo + k * inner + c0;
#pragma omp simd
            for (int64_t c = 0; c < tile; ++c) sum[c] += T(wk[c]) * T(wk[c]);
          }
          for (int64_t c = 0; c < tile; ++c) qo[c0 + c] = sum[c];
        }
      } else if (taps == 9) {
#pragma omp simd
        for (int64_t c = 0; c < inner; ++c) {
          T sum = 0;
#pragma GCC unroll 9
          for (int64_t k = 0; k < 9; ++k) sum += T(wo[c * 9 + k]) * T(wo[c * 9 + k]);
          qo[c] = sum;
        }
      } else {
        for (int64_t c = 0; c < inner; ++c) {
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t k = 0; k < taps; ++k) sum += T(wo[c * taps + k]) * T(wo[c * taps + k]);
          qo[c] = sum;
        }
      }
    }
  });
}

template <typename S>
void square_sum_grad(const SquareSumParams& p) {
  using T = Compute<S>;
  const S* w = typed<S>(p.w);
  const S* dq = typed<S>(p.dq);
  S* dw = typed<S>(p.dw);
  const int64_t taps = p.taps, inner = p.inner;
  if (inner == 0) return;
  parallel_for(p.rows / inner, threads_for(p.rows * taps, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t o = begin; o < end; ++o) {
      const S* wo = w + o * inner * taps;
      S* dwo = dw + o * inner * taps;
      const S* dqo = dq + o * inner;
      if (p.channels_last) {
        for (int64_t k = 0; k < taps; ++k) {
#pragma omp simd
          for (int64_t c = 0; c < inner; ++c) dwo[k * inner + c] = 2 * T(dqo[c]) * T(wo[k * inner + c]);
        }
      } else {
        for (int64_t c = 0; c < inner; ++c) {
          const T factor = 2 * T(dqo[c]);
          for (int64_t k = 0; k < taps; ++k) dwo[c * taps + k] = factor * T(wo[c * taps + k]);
        }
      }
    }
  });
}

// ---- out = s x ------------------------------------------------------------------------------------------------------

// One sample from planes to pixels, in squares of kSquare channels by kSquare pixels, which stay in cache.
template <typename S>
void modulate_transposed(const S* x, const S* s, S* out, int64_t channels, int64_t pixels, int64_t begin, int64_t end) {
  using T = Compute<S>;
  constexpr int64_t kSquare = 16;
  for (int64_t p0 = begin; p0 < end; p0 += kSquare) {
    const int64_t p1 = min64(p0 + kSquare, end);
    for (int64_t c0 = 0; c0 < channels; c0 += kSquare) {
      const int64_t c1 = min64(c0 + kSquare, channels);
      if (p1 - p0 == kSquare && c1 - c0 == kSquare) {
        T square[kSquare][kSquare];
        for (int64_t c = 0; c < kSquare; ++c) {
#pragma omp simd
          for (int64_t i = 0; i < kSquare; ++i) square[c][i] = T(s[c0 + c]) * T(x[(c0 + c) * pixels + p0 + i]);
        }
        for (int64_t i = 0; i < kSquare; ++i) {
#pragma omp simd
          for (int64_t c = 0; c < kSquare; ++c) out[(p0 + i) * channels + c0 + c] = square[c][i];
        }
        continue;
      }
      for (int64_t i = p0; i < p1; ++i) {
        for (int64_t c = c0; c < c1; ++c) out[i * channels + c] = T(s[c]) * T(x[c * pixels + i]);
      }
    }
  }
}

template <typename S>
void modulate(const ModulateParams& p) {
  using T = Compute<S>;
  const S* x = typed<S>(p.x);
  const S* s = typed<S>(p.styles);
  S* out = typed<S>(p.out);
  const int64_t channels = p.c, pixels = p.pixels, image = channels * pixels;
  const int threads = threads_for(p.n * image, kGrain);
  if (p.channels_last && p.out_channels_last) {
    parallel_for(p.n * pixels, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const S* sn = s + row / pixels * channels;
        const S* xn = x + row * channels;
        S* to = out + row * channels;
        for_vectors<S>(0, channels, [&](int64_t c, auto m) { store(to + c, load(sn + c, m) * load(xn + c, m), m); });
      }
    });
  } else if (!p.channels_last && !p.out_channels_last) {
    parallel_for(p.n * channels, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const T factor = s[row];
        const S* xn = x + row * pixels;
        S* to = out + row * pixels;
        for_vectors<S>(0, pixels, [&](int64_t i, auto m) { store(to + i, factor * load(xn + i, m), m); });
      }
    });
  } else if (p.out_channels_last) {
    for_blocks(p.n, channels, pixels, kMaxPixelBlock, [&](int64_t n, int64_t, int64_t first, int64_t size) {
      modulate_transposed(x + n * image, s + n * channels, out + n * image, channels, pixels, first, first + size);
    });
  } else {
    parallel_for(p.n * channels, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const S* xn = x + row / channels * image + row % channels;
        for (int64_t i = 0; i < pixels; ++i) out[row * pixels + i] = T(s[row]) * T(xn[i * channels]);
      }
    });
  }
}

template <typename S, bool kStyles>
void modulate_grad_planes(const ModulateGradParams& p, int64_t n, int64_t first, int64_t size, double* partial) {
  using T = Compute<S>;
  S unused[kMaxPixelBlock];
  for (int64_t c = 0; c < p.c; ++c) {
    const int64_t offset = (n * p.c + c) * p.pixels + first;
    const S* g = typed<S>(p.grad_out) + offset;
    const S* x = kStyles ? typed<S>(p.x) + offset : nullptr;
    S* dx = p.grad_x ? typed<S>(p.grad_x) + offset : unused;
    const T s = typed<S>(p.styles)[n * p.c + c];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) {
      const T gi = g[i];
      if constexpr (kStyles) sum += gi * T(x[i]);
      dx[i] = gi * s;
    }
    if constexpr (kStyles) partial[c] = sum;
  }
}

template <typename S, bool kStyles>
void modulate_grad_pixels(const ModulateGradParams& p, int64_t n, int64_t first, int64_t size, double* partial) {
  using T = Compute<S>;
  S unused[kTile];
  for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
    const int64_t tile = min64(kTile, p.c - c0);
    const S* s = typed<S>(p.styles) + n * p.c + c0;
    T sum[kTile] = {};
    for (int64_t i = first; i < first + size; ++i) {
      const int64_t offset = (n * p.pixels + i) * p.c + c0;
      const S* g = typed<S>(p.grad_out) + offset;
      const S* x = kStyles ? typed<S>(p.x) + offset : nullptr;
      S* dx = p.grad_x ? typed<S>(p.grad_x) + offset : unused;
      for_vectors<S>(0, tile, [&](int64_t c, auto m) {
        const Vec<T> gc = load(g + c, m);
        if constexpr (kStyles) store(sum + c, load(sum + c) + gc * load(x + c, m));
        store(dx + c, gc * load(s + c, m), m);
      });
    }
    if constexpr (kStyles) {
      for (int64_t c = 0; c < tile; ++c) partial[c0 + c] = sum[c];
    }
  }
}

template <typename S, bool kStyles>
void modulate_grad(const ModulateGradParams& p) {
  const int64_t blocks = ceil_div(p.pixels, p.pixel_block);
  for_blocks(p.n, p.c, p.pixels, p.pixel_block, [&](int64_t n, int64_t block, int64_t first, int64_t size) {
    double* partial = kStyles ? p.partials + (n * blocks + block) * p.c : nullptr;
    if (p.channels_last) {
      modulate_grad_pixels<S, kStyles>(p, n, first, size, partial);
    } else {
      modulate_grad_planes<S, kStyles>(p, n, first, size, partial);
    }
  });
  if constexpr (kStyles) sum_blocks<S>(p.partials, p.grad_styles, p.n, p.c, blocks);
}

}  // namespace

void square_sum_cpu(const SquareSumParams& p) {
  with_type(p.dtype, [&]<typename S>() { square_sum<S>(p); });
}

void square_sum_grad_cpu(const SquareSumParams& p) {
  with_type(p.dtype, [&]<typename S>() { square_sum_grad<S>(p); });
}

void modulate_cpu(const ModulateParams& p) {
  with_type(p.dtype, [&]<typename S>() { modulate<S>(p); });
}

void modulate_grad_cpu(const ModulateGradParams& p) {
  with_type(p.dtype, [&]<typename S>() { p.grad_styles ? modulate_grad<S, true>(p) : modulate_grad<S, false>(p); });
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(square_sum_cpu, SquareSumParams)
ATU_CPU_ENTRY(square_sum_grad_cpu, SquareSumParams)
ATU_CPU_ENTRY(modulate_cpu, ModulateParams)
ATU_CPU_ENTRY(modulate_grad_cpu, ModulateGradParams)
