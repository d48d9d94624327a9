// The nine activations, their slopes and curvatures, on SIMD vectors. Included by *_cpu.cpp only.
#pragma once

#include "bias_act.h"
#include "vecmath.h"

namespace atu::ATU_ISA {

template <typename T>
struct Slopes {
  Vec<T> first, second;
};

constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
// torch's softplus returns its argument above this.
constexpr double kSoftplusThreshold = 20.0;

template <Act A, typename T>
static inline Vec<T> activate(Vec<T> v, [[maybe_unused]] T alpha) {
  if constexpr (A == Act::linear) return v;
  // Written so that NaN goes through.
  if constexpr (A == Act::relu) return v < T(0) ? Vec<T>{} : v;
  if constexpr (A == Act::lrelu) return v < T(0) ? v * alpha : v;
  if constexpr (A == Act::tanh) return tanh<T>(v);
  if constexpr (A == Act::sigmoid) return sigmoid<T>(v);
  if constexpr (A == Act::elu) return v > T(0) ? v : expm1<T>(v);
  if constexpr (A == Act::selu) {
    return v > T(0) ? v * T(kSeluScale) : expm1<T>(v) * T(kSeluScale * kSeluAlpha);
  }
  if constexpr (A == Act::softplus) {
    const Vec<T> soft = (v > T(0) ? v : Vec<T>{}) + log1p<T>(exp<T>(-abs<T>(v)));
    return v > T(kSoftplusThreshold) ? v : soft;
  }
  if constexpr (A == Act::swish) return v * sigmoid<T>(v);
}

// act' and act'' from a = act(v). Not for swish, whose value does not determine them.
template <Act A, typename T>
static inline Slopes<T> slopes_from_value(Vec<T> a, [[maybe_unused]] T alpha) {
  const Vec<T> zero{}, one = splat(T(1));
  if constexpr (A == Act::relu) return {a > T(0) ? one : zero, zero};
  if constexpr (A == Act::lrelu) return {a > T(0) ? one : splat(alpha), zero};
  if constexpr (A == Act::tanh) {
    const Vec<T> first = one - a * a;
    return {first, T(-2) * a * first};
  }
  if constexpr (A == Act::sigmoid) {
    const Vec<T> first = a * (one - a);
    return {first, first * (one - T(2) * a)};
  }
  if constexpr (A == Act::elu) return {a > T(0) ? one : a + one, a > T(0) ? zero : a + one};
  if constexpr (A == Act::selu) {
    const Vec<T> low = a + T(kSeluScale * kSeluAlpha);
    return {a > T(0) ? splat(T(kSeluScale)) : low, a > T(0) ? zero : low};
  }
  if constexpr (A == Act::softplus) {
    const Vec<T> first = -expm1<T>(-a);
    return {a > T(kSoftplusThreshold) ? one : first, a > T(kSoftplusThreshold) ? zero : first * (one - first)};
  }
  return {one, zero};
}

// act' and act'' from v.
template <Act A, typename T>
static inline Slopes<T> slopes_from_input(Vec<T> v, [[maybe_unused]] T alpha) {
  if constexpr (A == Act::relu || A == Act::lrelu) return slopes_from_value<A, T>(v, alpha);
  if constexpr (A == Act::swish) {
    const Vec<T> s = sigmoid<T>(v), first = s * (T(1) - s);
    return {s + v * first, first * (T(2) + v * (T(1) - T(2) * s))};
  }
  return slopes_from_value<A, T>(activate<A, T>(v, alpha), alpha);
}

// Calls f.template operator()<A>() for the activation known at run time.
template <typename F>
static inline void with_act(Act act, const F& f) {
  switch (act) {
    case Act::linear:
      return f.template operator()<Act::linear>();
    case Act::relu:
      return f.template operator()<Act::relu>();
    case Act::lrelu:
      return f.template operator()<Act::lrelu>();
    case Act::tanh:
      return f.template operator()<Act::tanh>();
    case Act::sigmoid:
      return f.template operator()<Act::sigmoid>();
    case Act::elu:
      return f.template operator()<Act::elu>();
    case Act::selu:
      return f.template operator()<Act::selu>();
    case Act::softplus:
      return f.template operator()<Act::softplus>();
    case Act::swish:
      return f.template operator()<Act::swish>();
  }
}

}  // namespace atu::ATU_ISA
