// The inner loops of upfirdn2d_cpu.cpp: weighted sums of rows, written out in runs.
#pragma once

#include "simd.h"

namespace atu::ATU_ISA {
namespace {

// A sum over m < count of weight[m] * source(m)[i]: of rows one below the other, or of a list of places.
template <typename S>
struct RowTerms {
  const S* first;
  int64_t stride;
  const Compute<S>* weight;
  int64_t count;
  const S* source(int64_t m) const { return first + m * stride; }
};
template <typename T>
struct ListedTerms {
  const T** sources;
  T* weight;
  int64_t count;
  const T* source(int64_t m) const { return sources[m]; }
  void add(const T* from, T by) { sources[count] = from, weight[count] = by, ++count; }
};

// The sum at elements i ... of a vector, or (n an int) at the first n of them; of N terms, or any number where N is 0.
template <typename T, int N, typename Terms>
struct Sum {
  decltype(std::declval<Terms>().source(0)) source[N];
  Vec<T> weight[N];
  explicit Sum(const Terms& terms) {
#pragma GCC unroll 9
    for (int m = 0; m < N; ++m) source[m] = terms.source(m), weight[m] = splat(terms.weight[m]);
  }
  template <typename Count>
  Vec<T> operator()(int64_t i, Count n) const {
    Vec<T> total = weight[0] * load(source[0] + i, n);
#pragma GCC unroll 9
    for (int m = 1; m < N; ++m) total += weight[m] * load(source[m] + i, n);
    return total;
  }
};
template <typename T, typename Terms>
struct Sum<T, 0, Terms> {
  const Terms terms;
  explicit Sum(const Terms& terms) : terms(terms) {}
  template <typename Count>
  Vec<T> operator()(int64_t i, Count n) const {
    Vec<T> even{}, odd{};  // two chains, for the latency of the additions
    int64_t m = 0;
    for (; m + 2 <= terms.count; m += 2) {
      even += terms.weight[m] * load(terms.source(m) + i, n);
      odd += terms.weight[m + 1] * load(terms.source(m + 1) + i, n);
    }
    return m < terms.count ? even + odd + terms.weight[m] * load(terms.source(m) + i, n) : even + odd;
  }
};

// Calls f.operator()<N>() for a number of terms, N = 0 for those not written out.
template <typename F>
inline void with_count(int64_t n, const F& f) {
  switch (n) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case 4:
      return f.template operator()<4>();
    case 6:
      return f.template operator()<6>();
    case 9:
      return f.template operator()<9>();
    default:
      return f.template operator()<0>();
  }
}

template <typename S>
inline void put(S* to, Vec<S> v, Full, bool streaming) {
  if (streaming) {
    stream(to, v);
  } else {
    store(to, v);
  }
}
template <typename S>
inline void put(S* to, Vec<S> v, int count, bool) {
  store(to, v, count);
}

inline void put_both(BFloat16* to, VecF first, VecF second, bool streaming) {
#if defined(__AVX512BF16__)
  const __m512i both = __m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
  if (streaming && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), both);
  } else {
    _mm512_storeu_si512(to, both);
  }
#else
  put(to, first, Full{}, streaming);
  put(to + kLanes<BFloat16>, second, Full{}, streaming);
#endif
}

// Runs of sums: to[k to_step + i] = the sum at from + k from_step + i, for k < count and i < length.
struct Runs {
  int64_t count, length;
  int64_t from, from_step, to_step;
};

// From scratch rows to a tensor, or from a tensor to scratch rows: of a scratch row whole vectors are read and written,
// of a tensor no element past a run's end.
template <int N, bool from_scratch, typename S, typename Terms>
inline void write_sums(const Terms& terms, const Runs& runs, S* to, bool streaming) {
  using T = Compute<S>;
  const Sum<T, N, Terms> sum(terms);
  const int64_t length = runs.length, from_step = runs.from_step, to_step = runs.to_step;
  int64_t from = runs.from;
  if (length == kLanes<T>) {
    for (int64_t k = 0; k < runs.count; ++k, from += from_step, to += to_step) {
      put(to, sum(from, Full{}), Full{}, streaming);
    }
    return;
  }
  if constexpr (sizeof(S) < sizeof(T)) {
    // Two vectors make a whole one of the output.
    if (length % (2 * kLanes<T>) == 0) {
      for (int64_t k = 0; k < runs.count; ++k, from += from_step, to += to_step) {
        for (int64_t i = 0; i < length; i += 2 * kLanes<T>) {
          const VecF first = sum(from + i, Full{}), second = sum(from + i + kLanes<T>, Full{});
          put_both(to + i, first, second, streaming);
        }
      }
      return;
    }
  }
  for (int64_t k = 0; k < runs.count; ++k, from += from_step, to += to_step) {
    for_vectors<T>(0, length, [&](int64_t i, auto n) {
      if constexpr (from_scratch) {
        put(to + i, sum(from + i, Full{}), n, streaming);
      } else {
        store(to + i, sum(from + i, n));
      }
    });
  }
}

// to = even sum, odd sum, even sum ... alternately, `length` elements.
template <int N, typename T, typename S>
inline void write_alternating(const ListedTerms<T>& evens, const ListedTerms<T>& odds, int64_t length, S* to,
                              bool streaming) {
  constexpr int64_t V = kLanes<T>;
  const Sum<T, N, ListedTerms<T>> even(evens), odd(odds);
  for (int64_t j = 0; 2 * j < length; j += V, to += 2 * V) {
    const Pair<T> both = interleave<T>(even(j, Full{}), odd(j, Full{}));
    const int64_t left = length - 2 * j;
    if (left >= 2 * V) {
      put(to, both.first, Full{}, streaming);
      put(to + V, both.second, Full{}, streaming);
    } else if (left >= V) {
      store(to, both.first);
      store(to + V, both.second, int(left - V));
    } else {
      store(to, both.first, int(left));
    }
  }
}

}  // namespace
}  // namespace atu::ATU_ISA
