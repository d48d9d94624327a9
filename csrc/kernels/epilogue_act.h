// The activations in the modulated layer's epilogue: act(v), act'(v), act''(v), on the CPU, one element at a time.
//
// exp, expm1 and log1p are written out, branch-free, so that the loops round them vectorise (the C library's do not
// without -ffast-math). All are called with arguments that cannot overflow: exp and expm1 for x <= 0, log1p in [0, 1].
// Error below 2 ulp. e^x = 2^n (1 + p), n = round(x / ln 2), p = expm1(x - n ln 2) by its Taylor polynomial, whose
// truncation error on |r| <= ln(2) / 2 is below 1e-8 (degree 7) and 1e-17 (degree 13).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "bias_act.h"
#include "common.h"

namespace atu {

template <typename T>
struct ExpParts {
  T scale, p;  // e^x = scale (1 + p)
};

static inline ExpParts<float> exp_parts(float x) {
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  x = x < -87.f ? -87.f : x;
  const float k = x * 1.44269504088896341f + kMagic;
  const float n = k - kMagic;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  return {std::bit_cast<float>((std::bit_cast<uint32_t>(k) << 23) + 0x3f800000u), p * r * r + r};
}

static inline ExpParts<double> exp_parts(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  x = x < -708.0 ? -708.0 : x;
  const double k = x * 1.44269504088896338700 + kMagic;
  const double n = k - kMagic;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  return {std::bit_cast<double>((std::bit_cast<uint64_t>(k) << 52) + 0x3ff0000000000000u), p * r * r + r};
}

template <typename T>
static inline T exp_negative(T x) {
  const ExpParts<T> e = exp_parts(x);
  return e.scale * e.p + e.scale;
}

template <typename T>
static inline T expm1_negative(T x) {
  const ExpParts<T> e = exp_parts(x);
  return e.scale * e.p + (e.scale - 1);
}

// log(1 + z) = 2 atanh(z / (2 + z)), 0 <= z <= 1.
template <typename T>
static inline T log1p_unit(T z) {
  const T q = z / (2 + z), q2 = q * q;
  constexpr int kTerms = sizeof(T) == 4 ? 9 : 18;
  T sum = T(1.0 / (2 * kTerms - 1));
#pragma GCC unroll 18
  for (int k = kTerms - 2; k >= 0; --k) sum = sum * q2 + T(1.0 / (2 * k + 1));
  return 2 * q * sum;
}

template <typename T>
static inline T magnitude(T v) {
  return v < 0 ? -v : v;
}

template <typename T>
static inline T sigmoid(T v) {
  const T e = exp_negative(-magnitude(v));
  return (v < 0 ? e : T(1)) / (1 + e);
}

template <typename T>
static inline T tanh_act(T v) {
  const T e = expm1_negative(-2 * magnitude(v));
  const T t = e / (2 + e);
  return v < 0 ? t : -t;
}

template <typename T>
static constexpr T kSeluScale = T(1.0507009873554804934193349852946);
template <typename T>
static constexpr T kSeluSlope = T(1.0507009873554804934193349852946 * 1.6732632423543772848170429916717);

template <typename T>
static inline T negative_part(T v) {
  return v > 0 ? T(0) : v;
}

template <Act A>
constexpr bool kPiecewiseLinear = A == Act::linear || A == Act::relu || A == Act::lrelu;

// A NaN stays a NaN in each of these.
template <Act A, typename T>
static inline T act_value(T v, T alpha) {
  if constexpr (A == Act::relu) return v < 0 ? T(0) : v;
  if constexpr (A == Act::lrelu) return v < 0 ? v * alpha : v;
  if constexpr (A == Act::tanh) return tanh_act(v);
  if constexpr (A == Act::sigmoid) return sigmoid(v);
  if constexpr (A == Act::elu) return v > 0 ? v : expm1_negative(negative_part(v));
  if constexpr (A == Act::selu) {
    return v > 0 ? kSeluScale<T> * v : kSeluSlope<T> * expm1_negative(negative_part(v));
  }
  if constexpr (A == Act::softplus) return (v < 0 ? T(0) : v) + log1p_unit(exp_negative(-magnitude(v)));
  if constexpr (A == Act::swish) return v * sigmoid(v);
  return v;
}

template <Act A, typename T>
static inline T act_slope(T v, T alpha) {
  if constexpr (A == Act::relu) return v > 0 ? T(1) : T(0);
  if constexpr (A == Act::lrelu) return v > 0 ? T(1) : alpha;
  if constexpr (A == Act::tanh) {
    const T t = tanh_act(v);
    return 1 - t * t;
  }
  if constexpr (A == Act::sigmoid) {
    const T s = sigmoid(v);
    return s * (1 - s);
  }
  if constexpr (A == Act::elu) return v > 0 ? T(1) : exp_negative(negative_part(v));
  if constexpr (A == Act::selu) return v > 0 ? kSeluScale<T> : kSeluSlope<T> * exp_negative(negative_part(v));
  if constexpr (A == Act::softplus) return sigmoid(v);
  if constexpr (A == Act::swish) {
    const T s = sigmoid(v);
    return s * (1 + v * (1 - s));
  }
  return T(1);
}

template <Act A, typename T>
static inline T act_curvature(T v) {
  if constexpr (A == Act::tanh) {
    const T t = tanh_act(v);
    return -2 * t * (1 - t * t);
  }
  if constexpr (A == Act::sigmoid) {
    const T s = sigmoid(v);
    return s * (1 - s) * (1 - 2 * s);
  }
  if constexpr (A == Act::elu) return v > 0 ? T(0) : exp_negative(negative_part(v));
  if constexpr (A == Act::selu) return v > 0 ? T(0) : kSeluSlope<T> * exp_negative(negative_part(v));
  if constexpr (A == Act::softplus) {
    const T s = sigmoid(v);
    return s * (1 - s);
  }
  if constexpr (A == Act::swish) {
    const T s = sigmoid(v);
    return s * (1 - s) * (2 + v * (1 - 2 * s));
  }
  return T(0);
}

}  // namespace atu
