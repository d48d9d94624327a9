// upfirdn2d: zero-insert, pad or crop, FIR-filter, decimate.
//
//   y[n, c, oy, ox] = gain * sum_{ky, kx} g[ky, kx] * u[n, c, oy * down_y + ky - pad_y0, ox * down_x + kx - pad_x0]
//   u[n, c, iy * up_y, ix * up_x] = x[n, c, iy, ix], and 0 elsewhere (between samples and outside)
//   g = f where flip_filter (correlation), else f flipped along both axes (convolution)
//
// x [N, C, H, W]    input; planar (stride_w == 1) or channels-last (stride_c == 1), any other strides
// f [fh, fw]        taps; or [taps], separable: g[ky, kx] = f[ky] * f[kx] and fh == fw == taps
// y [N, C, OH, OW]  output, same kind of layout as x.  OH = (H * up_y + pad_y0 + pad_y1 - fh) / down_y + 1
//
// pad_*1 appears in OH, OW only: whatever lies outside x is zero. Pads may be negative (crop).
// Bound: bytes, (|x| + |y|) * sizeof(element), each once; flops 2 * |y| * (fh / up_y) * (fw / up_x), or the sum of the
// two factors instead of their product when separable.
#pragma once

#include "common.h"

namespace atu {

struct Upfirdn2dParams {
  const void* x;
  const void* f;  // contiguous; double when dtype is f64, else float
  void* y;
  DType dtype;  // of x and y
  bool channels_last;
  bool separable;
  bool flip_filter;
  double gain;
  int64_t n, c, h, w;
  int64_t out_h, out_w;
  int64_t x_stride_n, x_stride_c, x_stride_h, x_stride_w;
  int64_t y_stride_n, y_stride_c, y_stride_h, y_stride_w;
  int64_t filter_h, filter_w;
  int64_t up_x, up_y, down_x, down_y;
  int64_t pad_x0, pad_y0;
};

void upfirdn2d_cpu(const Upfirdn2dParams& p);
void upfirdn2d_cuda(const Upfirdn2dParams& p, void* stream);

}  // namespace atu
