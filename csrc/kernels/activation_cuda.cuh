// The activations on the device, over an array of registers: the switch over the activation is outside the loop over
// elements, so it is one uniform branch for a vector. Same formulas as activation_cpu.h; A is float or double.
#pragma once

#include "bias_act.h"
#include "cuda_common.cuh"

namespace atu::cuda {

constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSeluSlope = 1.0507009873554804934193349852946 * 1.6732632423543772848170429916717;

template <class A>
__device__ __forceinline__ A sigmoid(A v) {
  return A(1) / (A(1) + exp(-v));
}

template <int V, class A, class F>
__device__ __forceinline__ void map(A (&out)[V], const A (&v)[V], F f) {
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = f(v[j]);
}

// out = act(v). A NaN stays a NaN.
template <int V, class A>
__device__ __forceinline__ void act_value(Act act, A alpha, const A (&v)[V], A (&out)[V]) {
  switch (act) {
    case Act::relu:
      return map(out, v, [](A a) { return a < A(0) ? A(0) : a; });
    case Act::lrelu:
      return map(out, v, [=](A a) { return a < A(0) ? a * alpha : a; });
    case Act::tanh:
      return map(out, v, [](A a) { return tanh(a); });
    case Act::sigmoid:
      return map(out, v, [](A a) { return sigmoid(a); });
    case Act::elu:
      return map(out, v, [](A a) { return a > A(0) ? a : expm1(a); });
    case Act::selu:
      return map(out, v, [](A a) { return a > A(0) ? A(kSeluScale) * a : A(kSeluSlope) * expm1(a); });
    case Act::softplus:
      return map(out, v, [](A a) { return (a < A(0) ? A(0) : a) + log1p(exp(-fabs(a))); });
    case Act::swish:
      return map(out, v, [](A a) { return a * sigmoid(a); });
    case Act::linear:
      break;
  }
  map(out, v, [](A a) { return a; });
}

// out = act'(v)
template <int V, class A>
__device__ __forceinline__ void act_slope(Act act, A alpha, const A (&v)[V], A (&out)[V]) {
  switch (act) {
    case Act::relu:
      return map(out, v, [](A a) { return a > A(0) ? A(1) : A(0); });
    case Act::lrelu:
      return map(out, v, [=](A a) { return a > A(0) ? A(1) : alpha; });
    case Act::tanh:
      return map(out, v, [](A a) {
        const A t = tanh(a);
        return A(1) - t * t;
      });
    case Act::sigmoid:
      return map(out, v, [](A a) {
        const A s = sigmoid(a);
        return s * (A(1) - s);
      });
    case Act::elu:
      return map(out, v, [](A a) { return a > A(0) ? A(1) : exp(a); });
    case Act::selu:
      return map(out, v, [](A a) { return a > A(0) ? A(kSeluScale) : A(kSeluSlope) * exp(a); });
    case Act::softplus:
      return map(out, v, [](A a) { return sigmoid(a); });
    case Act::swish:
      return map(out, v, [](A a) {
        const A s = sigmoid(a);
        return s * (A(1) + a * (A(1) - s));
      });
    case Act::linear:
      break;
  }
  map(out, v, [](A) { return A(1); });
}

// out = act''(v)
template <int V, class A>
__device__ __forceinline__ void act_curvature(Act act, const A (&v)[V], A (&out)[V]) {
  switch (act) {
    case Act::tanh:
      return map(out, v, [](A a) {
        const A t = tanh(a);
        return -A(2) * t * (A(1) - t * t);
      });
    case Act::sigmoid:
      return map(out, v, [](A a) {
        const A s = sigmoid(a);
        return s * (A(1) - s) * (A(1) - A(2) * s);
      });
    case Act::elu:
      return map(out, v, [](A a) { return a > A(0) ? A(0) : exp(a); });
    case Act::selu:
      return map(out, v, [](A a) { return a > A(0) ? A(0) : A(kSeluSlope) * exp(a); });
    case Act::softplus:
      return map(out, v, [](A a) {
        const A s = sigmoid(a);
        return s * (A(1) - s);
      });
    case Act::swish:
      return map(out, v, [](A a) {
        const A s = sigmoid(a);
        return s * (A(1) - s) * (A(2) + a * (A(1) - A(2) * s));
      });
    case Act::linear:
    case Act::relu:
    case Act::lrelu:
      break;
  }
  map(out, v, [](A) { return A(0); });
}

// The same two from a = act(v), for the activations whose value tells their slope (all but swish).
template <int V, class A>
__device__ __forceinline__ void act_slope_from_value(Act act, A alpha, const A (&v)[V], A (&out)[V]) {
  switch (act) {
    case Act::relu:
      return map(out, v, [](A a) { return a > A(0) ? A(1) : A(0); });
    case Act::lrelu:
      return map(out, v, [=](A a) { return a > A(0) ? A(1) : alpha; });
    case Act::tanh:
      return map(out, v, [](A a) { return A(1) - a * a; });
    case Act::sigmoid:
      return map(out, v, [](A a) { return a * (A(1) - a); });
    case Act::elu:
      return map(out, v, [](A a) { return a > A(0) ? A(1) : a + A(1); });
    case Act::selu:
      return map(out, v, [](A a) { return a > A(0) ? A(kSeluScale) : a + A(kSeluSlope); });
    case Act::softplus:
      return map(out, v, [](A a) { return -expm1(-a); });
    case Act::swish:
    case Act::linear:
      break;
  }
  map(out, v, [](A) { return A(1); });
}

template <int V, class A>
__device__ __forceinline__ void act_curvature_from_value(Act act, const A (&v)[V], A (&out)[V]) {
  switch (act) {
    case Act::tanh:
      return map(out, v, [](A a) { return A(-2) * a * (A(1) - a * a); });
    case Act::sigmoid:
      return map(out, v, [](A a) { return a * (A(1) - a) * (A(1) - A(2) * a); });
    case Act::elu:
      return map(out, v, [](A a) { return a > A(0) ? A(0) : a + A(1); });
    case Act::selu:
      return map(out, v, [](A a) { return a > A(0) ? A(0) : a + A(kSeluSlope); });
    case Act::softplus:
      return map(out, v, [](A a) { return exp(-a) * -expm1(-a); });
    case Act::linear:
    case Act::relu:
    case Act::lrelu:
    case Act::swish:
      break;
  }
  map(out, v, [](A) { return A(0); });
}

}  // namespace atu::cuda
