// exp, expm1, log1p, tanh on SIMD vectors, accurate to about one unit in the last place (tests/ops/test_bias_act.py).
// Included by *_cpu.cpp only.
//
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; exp(r) by its Taylor series, whose first term left out is
// below 1/16 of a rounding (float: r^8/8! <= 5e-9; double: r^14/14! <= 5e-18).
#pragma once

#include "simd.h"

namespace atu::ATU_ISA {

template <typename T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr int terms = 7;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr int mantissa_bits = 23, bias = 127;
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float low = -104.0f, high = 89.0f;
  static constexpr float normal_low = -87.0f, normal_high = 88.0f;  // 2^n is a normal number within
  static constexpr int log1p_terms = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr int terms = 13;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa_bits = 52, bias = 1023;
  static constexpr double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10;
  static constexpr double low = -746.0, high = 710.0;
  static constexpr double normal_low = -708.0, normal_high = 709.0;
  static constexpr int log1p_terms = 16;
};

template <typename T>
struct ExpParts {
  typename Simd<T>::I n;
  Vec<T> q;  // exp(r) - 1
};

// x within [low, high]; NaN goes through to q.
template <typename T>
static inline ExpParts<T> exp_parts(Vec<T> x) {
  using C = ExpConstants<T>;
  using I = typename Simd<T>::I;
  using Int = typename Simd<T>::Int;
  const Vec<T> shifted = x * T(1.44269504088896340736) + C::magic;
  const Vec<T> nf = shifted - C::magic;
  const I n = I(shifted) - __builtin_bit_cast(Int, C::magic);
  const Vec<T> r = (x - nf * C::ln2_hi) - nf * C::ln2_lo;
  // q = r + r^2/2! + ... as r * (1 + r/2 * (1 + r/3 * (...))).
  Vec<T> q = splat(T(1));
#pragma GCC unroll 16
  for (int k = C::terms; k >= 2; --k) q = q * (r * T(1.0 / k)) + T(1);
  return {n, q * r};
}

template <typename T>
static inline Vec<T> pow2(typename Simd<T>::I n) {
  using C = ExpConstants<T>;
  return Vec<T>((n + C::bias) << C::mantissa_bits);
}

template <typename T>
static inline Vec<T> clamp(Vec<T> x, T low, T high) {  // NaN stays NaN
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
}

template <typename T>
static inline Vec<T> exp(Vec<T> x) {
  const ExpParts<T> e = exp_parts<T>(clamp<T>(x, ExpConstants<T>::low, ExpConstants<T>::high));
  // In two steps, for 2^n alone leaves the range before exp(x) does.
  const auto half = e.n >> 1;
  return (e.q + T(1)) * pow2<T>(half) * pow2<T>(e.n - half);
}

// exp(x) and exp(x) - 1 for x up to normal_high; below normal_low as there.
template <typename T>
struct Exponentials {
  Vec<T> exp, expm1;
};

template <typename T>
static inline Exponentials<T> exponentials(Vec<T> x) {
  using C = ExpConstants<T>;
  const ExpParts<T> e = exp_parts<T>(clamp<T>(x, C::normal_low, C::normal_high));
  const Vec<T> scale = pow2<T>(e.n);
  return {scale * e.q + scale, scale * e.q + (scale - T(1))};
}

template <typename T>
static inline Vec<T> expm1(Vec<T> x) {
  return exponentials<T>(x).expm1;
}

// For u in [0, 1]: log(1 + u) = 2 artanh(u / (2 + u)) = 2 s (1 + s^2/3 + s^4/5 + ...), s <= 1/3.
template <typename T>
static inline Vec<T> log1p(Vec<T> u) {
  const Vec<T> s = u / (u + T(2)), t = s * s;
  constexpr int terms = ExpConstants<T>::log1p_terms;
  Vec<T> p = splat(T(1.0 / (2 * terms + 1)));
#pragma GCC unroll 16
  for (int k = terms - 1; k >= 0; --k) p = p * t + T(1.0 / (2 * k + 1));
  return T(2) * s * p;
}

template <typename T>
static inline Vec<T> abs(Vec<T> x) {
  using Int = typename Simd<T>::Int;
  return Vec<T>(typename Simd<T>::I(x) & Int(~(Int(1) << (8 * sizeof(T) - 1))));
}

// tanh|x| = e / (e + 2), e = exp(2|x|) - 1; from |x| = 20 on it rounds to 1.
template <typename T>
static inline Vec<T> tanh(Vec<T> x) {
  const Vec<T> magnitude = abs<T>(x);
  const Vec<T> e = expm1<T>(magnitude + magnitude);
  const Vec<T> t = e / (e + T(2));
  return x < T(0) ? -t : t;
}

template <typename T>
static inline Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (exp<T>(-x) + T(1));
}

}  // namespace atu::ATU_ISA
