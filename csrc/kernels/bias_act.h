// bias_act: bias, activation, gain and clamp, with its first and second gradient.
//
//   forward  y  = clamp(gain * act(v)),  v = x + b[channel]
//   grad     dx = dy * gain * act'(v) * inside             (and, where asked for, db[channel] = sum of dx)
//   grad2    d(dy) = g * gain * act'(v) * inside            of the grad's output dx with respect to its input dy, and
//            d(x)  = g * dy * gain * act''(v) * inside      with respect to v; g is the gradient arriving at dx
//
// `inside` is 1 where |y| < clamp (or clamp < 0: none), else 0.
//
// The gradients know v from a saved tensor: from y (reference == y: act' and act'' are functions of act(v) = y / gain)
// or from x and b (reference == x: swish, whose value does not determine its slope, and gain == 0).
//
// All tensors are dense with equal strides, so they are flat arrays of `numel` elements in memory order; element i has
// channel (i / inner) % channels. [N, C, H, W] with dim 1: inner = H * W when contiguous, 1 when channels-last.
//
// Bound: bytes. forward 2 arrays, grad 3 (dy, reference, dx), grad2 5 (g, dy, reference, d(dy), d(x)); act "linear"
// without clamp and the piecewise linear activations need fewer, see the pointers below.
#pragma once

#include "common.h"

namespace atu {

enum class Act : int {
  linear = 0,
  relu = 1,
  lrelu = 2,
  tanh = 3,
  sigmoid = 4,
  elu = 5,
  selu = 6,
  softplus = 7,
  swish = 8
};

enum class Reference : int { none = 0, x = 1, y = 2 };

struct BiasActParams {
  DType dtype;
  Act act;
  double alpha;  // slope of lrelu
  double gain;
  double clamp;  // < 0: none
  int64_t numel, inner, channels;
  const void* bias;  // [channels] of dtype, or null. In the gradients used only with Reference::x
};

struct BiasActForwardParams : BiasActParams {
  const void* x;
  void* y;
};

struct BiasActGradParams : BiasActParams {
  Reference kind;         // none: act is linear and there is no clamp
  const void* reference;  // x or y, null for none
  const void* dy;
  void* dx;
  void* db;  // [channels] of dtype or null; CPU only, the CUDA function is given null
};

struct BiasActGrad2Params : BiasActParams {
  Reference kind;
  const void* reference;
  const void* g;  // gradient at dx
  const void* dy;
  void* d_dy;  // or null
  void* d_x;   // or null (piecewise linear activations: zero everywhere)
};

void bias_act_cpu(const BiasActForwardParams& p);
void bias_act_grad_cpu(const BiasActGradParams& p);
void bias_act_grad2_cpu(const BiasActGrad2Params& p);
void bias_act_cuda(const BiasActForwardParams& p, void* stream);
void bias_act_grad_cuda(const BiasActGradParams& p, void* stream);
void bias_act_grad2_cuda(const BiasActGrad2Params& p, void* stream);

}  // namespace atu
