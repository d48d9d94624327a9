// The nine activations on SIMD vectors with their derivatives, gain and clamp. Included by *_cpu.cpp only.
#pragma once

#include "bias_act.h"
#include "vecmath.h"

namespace atu::ATU_ISA {

constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSeluSlope = kSeluScale * 1.6732632423543772848170429916717;  // at 0 from below
// torch's softplus returns its argument above this.
constexpr double kSoftplusThreshold = 20.0;

// Whether act'' is not 0 everywhere.
template <Act A>
constexpr bool kCurved = A != Act::linear && A != Act::relu && A != Act::lrelu;

// act(v), act'(v), act''(v). What a caller does not use is not computed: everything here is inlined.
template <typename T>
struct Curve {
  Vec<T> value, first, second;
};

// At v. A NaN stays a NaN in the value.
template <Act A, typename T>
static inline Curve<T> activation(Vec<T> v, [[maybe_unused]] T alpha) {
  const Vec<T> zero{}, one = splat(T(1));
  if constexpr (A == Act::relu) return {v < T(0) ? zero : v, v > T(0) ? one : zero, zero};
  if constexpr (A == Act::lrelu) return {v < T(0) ? v * alpha : v, v > T(0) ? one : splat(alpha), zero};
  if constexpr (A == Act::tanh) {
    const Vec<T> t = tanh<T>(v), first = one - t * t;
    return {t, first, T(-2) * t * first};
  }
  if constexpr (A == Act::sigmoid) {
    const Vec<T> s = sigmoid<T>(v), first = s * (one - s);
    return {s, first, first * (one - T(2) * s)};
  }
  if constexpr (A == Act::elu) {
    const Exponentials<T> e = exponentials<T>(v);
    return {v > T(0) ? v : e.expm1, v > T(0) ? one : e.exp, v > T(0) ? zero : e.exp};
  }
  if constexpr (A == Act::selu) {
    const Exponentials<T> e = exponentials<T>(v);
    const Vec<T> low = e.exp * T(kSeluSlope);
    return {v > T(0) ? v * T(kSeluScale) : e.expm1 * T(kSeluSlope), v > T(0) ? splat(T(kSeluScale)) : low,
            v > T(0) ? zero : low};
  }
  if constexpr (A == Act::softplus) {
    const auto linear = v > T(kSoftplusThreshold);
    const Vec<T> e = exp<T>(-abs<T>(v)), s = (v < T(0) ? e : one) / (e + T(1));
    return {linear ? v : (v > T(0) ? v : zero) + log1p<T>(e), linear ? one : s, linear ? zero : s * (one - s)};
  }
  if constexpr (A == Act::swish) {
    const Vec<T> s = sigmoid<T>(v), first = s * (one - s);
    return {v * s, s + v * first, first * (T(2) + v * (one - T(2) * s))};
  }
  return {v, one, zero};
}

// From a = act(v). Not for swish, whose value does not determine the other two.
template <Act A, typename T>
static inline Curve<T> activation_from_value(Vec<T> a, [[maybe_unused]] T alpha) {
  static_assert(A != Act::swish);
  const Vec<T> zero{}, one = splat(T(1));
  if constexpr (A == Act::relu) return {a, a > T(0) ? one : zero, zero};
  if constexpr (A == Act::lrelu) return {a, a > T(0) ? one : splat(alpha), zero};
  if constexpr (A == Act::tanh) {
    const Vec<T> first = one - a * a;
    return {a, first, T(-2) * a * first};
  }
  if constexpr (A == Act::sigmoid) {
    const Vec<T> first = a * (one - a);
    return {a, first, first * (one - T(2) * a)};
  }
  if constexpr (A == Act::elu) return {a, a > T(0) ? one : a + one, a > T(0) ? zero : a + one};
  if constexpr (A == Act::selu) {
    const Vec<T> low = a + T(kSeluSlope);
    return {a, a > T(0) ? splat(T(kSeluScale)) : low, a > T(0) ? zero : low};
  }
  if constexpr (A == Act::softplus) {
    const auto linear = a > T(kSoftplusThreshold);
    const Vec<T> first = -expm1<T>(-a);
    return {a, linear ? one : first, linear ? zero : first * (one - first)};
  }
  return {a, one, zero};
}

template <typename T>
struct Derivatives {
  Vec<T> first, second;
};

// y = clamp(gain act(v)), and its derivatives in v: 0 where it is clamped.
template <Act A, typename T>
struct Output {
  T alpha, gain, inverse_gain, bound;
  bool clamped;

  template <typename Params>
  explicit Output(const Params& p)
      : alpha(T(p.alpha)), gain(T(p.gain)), inverse_gain(T(1.0 / p.gain)), bound(T(p.clamp)), clamped(p.clamp >= 0) {}

  Vec<T> operator()(Vec<T> v) const {
    const Vec<T> y = activation<A, T>(v, alpha).value * gain;
    return clamped ? clamp<T>(y, -bound, bound) : y;
  }
  Derivatives<T> derivatives(Vec<T> v) const {
    const Curve<T> act = activation<A, T>(v, alpha);
    return scaled(act, act.value * gain);
  }
  // From y. Not for swish, and not for a gain of 0.
  Derivatives<T> derivatives_from_output(Vec<T> y) const {
    return scaled(activation_from_value<A, T>(y * inverse_gain, alpha), y);
  }

 private:
  Derivatives<T> scaled(const Curve<T>& act, Vec<T> y) const {
    const Vec<T> first = act.first * gain, second = kCurved<A> ? act.second * gain : Vec<T>{};
    if (!clamped) return {first, second};
    const auto inside = abs<T>(y) < bound;
    return {inside ? first : Vec<T>{}, inside ? second : Vec<T>{}};
  }
};

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
