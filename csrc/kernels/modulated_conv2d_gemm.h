// modulated_conv2d_gemm: the modulated layer as one implicit GEMM on tensor cores, for CUDA.
//
//   u[n,oy,ox,o] = sum_{ky,kx,c} round(in_scale[n,c] x[n, oy stride + ky - pad_y, ox stride + kx - pad_x, c])
//   w[o,ky,kx,c] y = clamp(gain act(out_scale[n,o] u + noise[n,oy,ox] + bias[o]))                      x is 0 outside
//   the image
//
// Forward of the layer: in_scale = styles, out_scale = demodulation coefficients. Input gradient (stride 1): x = the
// gradient at u, w with taps flipped and its channels exchanged, pads kernel - 1 - pad, out_scale = styles: y is the
// gradient at the layer's input, u the gradient at the modulated input.
//
// All images are channels-last and dense: x [N, H, W, C], u and y [N, OH, OW, O]; w [O, kh, kw, C]; in_scale [N, C];
// out_scale [N, O]; noise [N or 1, OH, OW]; bias [O].
//
// What is exact. f16, bf16: in_scale x is rounded to the dtype as a separate pass would round it (the float32 product
// of two such numbers is exact, so there is one rounding); products with w are exact, their sum is kept in float32, in
// an order that differs from other engines'; u is rounded to the dtype and y computed from the rounded value in
// float32, so y is bit for bit what the passes of modulated_conv2d.h would make of this u, whether u is stored or not.
// f32: in_scale x is rounded to float32, then it and w to tf32 (10 fraction bits, to nearest); the rest is float32.
// Hence the caller asks for f32 only where tf32 is allowed. Sums do not depend on the tile: the order over (ky, kx, c)
// is the same for both, up to where the channel blocks of 32 (f32: 16) end.
//
// GEMM view: M = pixels p of one image (OH OW), N = output channels o, K = (tap, c). A block makes one tile of M x N
// of one image, so in_scale is the same for all its rows: it is multiplied in registers, between ldmatrix and mma.
// Bound: flops 2 N OH OW O C kh kw; bytes |x| + |w| + |u| + |y| at least.
#pragma once

#include "bias_act.h"
#include "common.h"

namespace atu {

enum class GemmTile : int { automatic = 0, small = 1, large = 2 };  // 64 x 64, 128 x 128

struct ModulatedGemmParams {
  DType dtype;  // f16, bf16, or f32 (computed in tf32); of every tensor
  GemmTile tile;
  int64_t n, in_h, in_w, in_c;
  int64_t out_h, out_w, out_c;
  int64_t kernel_h, kernel_w, stride;
  int64_t pad_y, pad_x;  // top and left; bottom and right follow from out_h and out_w
  const void* x;
  const void* w;
  const void* in_scale;   // or null: 1
  const void* out_scale;  // or null: 1
  const void* noise;      // or null: 0
  int64_t noise_stride_n;
  const void* bias;  // or null: 0
  Act act;
  double alpha;  // slope of lrelu
  double gain;
  double clamp;  // < 0: none
  void* u;       // or null
  void* y;       // or null, not both
};

// Needs compute capability 8.0. Throws std::runtime_error when the launch fails, std::invalid_argument for f64.
void modulated_conv2d_gemm_cuda(const ModulatedGemmParams& p, void* stream);

}  // namespace atu
