// modulated_conv2d: what surrounds the convolution of StyleGAN2's modulated layer, with first and second gradients.
//
// The layer:      y = clamp(gain act(v)),  v = d[n,o] u + noise[n,p] + b[o],  u = conv(s x, w)
//                 d[n,o] = 1 / sqrt(sum_c s[n,c]^2 q[o,c] + 1e-8),  q[o,c] = sum_k w[o,c,k]^2
// Convolution and resampling are other ops (torch's engine, upfirdn2d); the matrix product in d is torch's. Here:
//
//   square_sum      q = sum_k w^2                                        grad: dw = 2 w dq
//   modulate        out = s[n,c] x                                       grad: dx = s dout, ds[n,c] = sum_p x dout
//   epilogue        y from u, d, noise, b; on CUDA also next[n,c] y, the next layer's modulated input
//   epilogue_grad   with f = act'(v) gain inside (inside: 1 where |gain act(v)| < clamp, else 0; clamp < 0: always 1)
//                     dv = dy f;  du = dv d;  dd[n,c] = sum_p dv u;  db[n,c] = sum_p dv;  dnoise[n,p] = sum_c dv
//   epilogue_grad2  the gradient of epilogue_grad. gu, gd, gn, gb arrive at du, dd, dnoise, db. With
//                     t = gu d + gd u + gn + gb  (the directional change of v),  e = dy act''(v) gain inside t
//                     d_dy = f t;  d_u = dy f gd + e d;  d_d[n,c] = sum_p (dy f gu + e u);
//                     d_b[n,c] = sum_p e;  d_noise[n,p] = sum_c e
//
// Coordinates: n sample, c channel (o in the layer's formula), p pixel (of H W), k tap.
// Shapes: images [N, C, P]; d, styles and all per-channel sums [N, C] (the caller adds db and d_b over n); b [C];
// noise [N or 1, P] (noise_stride_n 0 when shared; the caller adds dnoise over n then); q [O, C].
// Layout: image element (n, c, p) is at n C P + c P + p, or with channels_last at n C P + p C + c.
//
// Sums: pixels are cut into blocks of `pixel_block` (at most kMaxPixelBlock on the CPU); a block's sums, in the dtype
// (with f16/bf16: float), go to `partials` in double and are added in block order. So they do not depend on the
// number of threads, and an error grows with the block, not with the image.
//
// Bound: bytes. modulate 2 images, its grad 3; epilogue 2 (with next 3, or 2 without y); epilogue_grad 3 (u, dy, du);
// epilogue_grad2 5 (u, dy, gu, d_dy, d_u); square_sum 1 weight, its grad 2. All are small beside the convolution's
// flops 2 N P O C K.
#pragma once

#include "bias_act.h"
#include "common.h"

namespace atu {

constexpr int64_t kMaxPixelBlock = 1024;
constexpr int64_t kCudaPixelBlock = 256;  // at most on CUDA

// dtype of every tensor is `dtype`; with f16/bf16 styles, d, bias, noise and the per-channel sums have it too.
struct SquareSumParams {
  DType dtype;
  int64_t rows;   // O C
  int64_t inner;  // C: row r = o C + c
  int64_t taps;   // K
  // Element (o, c, k) of w is at (o C + c) K + k, or with channels_last at (o K + k) C + c.
  bool channels_last;
  const void* w;   // [O, C, K]
  void* q;         // [O, C]; forward
  const void* dq;  // [O, C]; grad
  void* dw;        // like w; grad
};

// CUDA only: the demodulation coefficients in one launch, q kept in float32. For where no gradient is wanted.
struct DemodulateParams {
  DType dtype;
  int64_t n, o, c, taps;
  bool channels_last;  // of w, as above
  const void* w;       // [O, C, K]
  const void* styles;  // [N, C]
  void* d;             // [N, O]
};

struct ModulateParams {
  DType dtype;
  int64_t n, c, pixels;
  bool channels_last;      // of x, grad_out and grad_x
  bool out_channels_last;  // of out
  const void* x;
  const void* styles;  // [N, C]
  void* out;
};

struct ModulateGradParams : ModulateParams {
  const void* grad_out;  // laid out as x
  void* grad_x;          // or null; may be grad_out
  void* grad_styles;     // [N, C] or null (then partials and x may be null)
  int64_t pixel_block;
  double* partials;  // [N, blocks, C] scratch, blocks = ceil(pixels / pixel_block)
};

struct EpilogueParams {
  DType dtype;
  Act act;
  double alpha;  // slope of lrelu
  double gain;
  double clamp;  // < 0: none
  int64_t n, c, pixels;
  bool channels_last;
  const void* u;
  const void* d;      // [N, C] or null: 1
  const void* noise;  // [N or 1, P] or null: 0
  int64_t noise_stride_n;
  const void* bias;  // [C] or null: 0
};

struct EpilogueForwardParams : EpilogueParams {
  void* y;  // may be u; null where only `scaled` is wanted
};

// CUDA only: y, rounded to the dtype, times the next layer's styles.
struct EpilogueScaledParams : EpilogueForwardParams {
  const void* next;  // [N, C]; null: as EpilogueForwardParams
  void* scaled;      // like u; may be u
};

struct EpilogueGradParams : EpilogueParams {
  const void* dy;
  void* du;      // may be dy
  void* dd;      // [N, C] or null
  void* db;      // [N, C] or null
  void* dnoise;  // [N, P] or null
  int64_t pixel_block;
  double* partials;  // [2, N, blocks, C] scratch (dd, db); null when both are
};

struct EpilogueGrad2Params : EpilogueParams {
  const void* dy;
  const void* gu;  // like u, or null: 0
  const void* gd;  // [N, C] or null: 0
  const void* gn;  // [N, P] or null: 0
  const void* gb;  // [N, C] or null: 0
  void* d_dy;
  void* d_u;
  void* d_d;      // [N, C] or null
  void* d_b;      // [N, C] or null
  void* d_noise;  // [N, P] or null
  int64_t pixel_block;
  double* partials;  // [2, N, blocks, C] scratch (d_d, d_b); null when both are
};

void square_sum_cpu(const SquareSumParams& p);
void square_sum_grad_cpu(const SquareSumParams& p);
void modulate_cpu(const ModulateParams& p);
void modulate_grad_cpu(const ModulateGradParams& p);
void epilogue_cpu(const EpilogueForwardParams& p);
void epilogue_grad_cpu(const EpilogueGradParams& p);
void epilogue_grad2_cpu(const EpilogueGrad2Params& p);

void square_sum_cuda(const SquareSumParams& p, void* stream);
void square_sum_grad_cuda(const SquareSumParams& p, void* stream);
void demodulate_cuda(const DemodulateParams& p, void* stream);
void modulate_cuda(const ModulateParams& p, void* stream);
void modulate_grad_cuda(const ModulateGradParams& p, void* stream);
void epilogue_cuda(const EpilogueForwardParams& p, void* stream);
void epilogue_scaled_cuda(const EpilogueScaledParams& p, void* stream);
void epilogue_grad_cuda(const EpilogueGradParams& p, void* stream);
void epilogue_grad2_cuda(const EpilogueGrad2Params& p, void* stream);

}  // namespace atu
