#include "upfirdn2d.h"

#include "cpu_isa.h"
#include "parallel.h"

namespace atu::ATU_ISA {
namespace {

template <typename T>
void run(const Upfirdn2dParams& p) {
  const T* x = static_cast<const T*>(p.x);
  const T* f = static_cast<const T*>(p.f);
  T* y = static_cast<T*>(p.y);
  const auto tap = [&](int64_t ky, int64_t kx) {
    if (!p.flip_filter) ky = p.filter_h - 1 - ky, kx = p.filter_w - 1 - kx;
    return p.separable ? f[ky] * f[kx] : f[ky * p.filter_w + kx];
  };
  const int64_t rows = p.n * p.c * p.out_h;
  parallel_for(rows, threads_for(rows * p.out_w, 16384), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t oy = row % p.out_h, c = row / p.out_h % p.c, n = row / p.out_h / p.c;
      for (int64_t ox = 0; ox < p.out_w; ++ox) {
        T sum = 0;
        for (int64_t ky = 0; ky < p.filter_h; ++ky) {
          const int64_t uy = oy * p.down_y + ky - p.pad_y0, iy = floor_div(uy, p.up_y);
          if (iy < 0 || iy >= p.h || iy * p.up_y != uy) continue;
          for (int64_t kx = 0; kx < p.filter_w; ++kx) {
            const int64_t ux = ox * p.down_x + kx - p.pad_x0, ix = floor_div(ux, p.up_x);
            if (ix < 0 || ix >= p.w || ix * p.up_x != ux) continue;
            sum += tap(ky, kx) * x[n * p.x_stride_n + c * p.x_stride_c + iy * p.x_stride_h + ix * p.x_stride_w];
          }
        }
        y[n * p.y_stride_n + c * p.y_stride_c + oy * p.y_stride_h + ox * p.y_stride_w] = sum * T(p.gain);
      }
    }
  });
}

}  // namespace

void upfirdn2d_cpu(const Upfirdn2dParams& p) {
  if (p.dtype == DType::f64) {
    run<double>(p);
  } else {
    run<float>(p);
  }
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(upfirdn2d_cpu, Upfirdn2dParams)
