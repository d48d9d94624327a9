// What upfirdn2d_cpu.cpp works out once a call, before any thread starts: the phases of each axis, the filter with its
// gain, and how output rows are cut into strips of columns.
//
// Along one axis, outputs o = P j + r of phase r (P = up / gcd(up, down) phases) are a plain FIR of the input with step
// D = down / gcd:
//     out[P j + r] = sum_m g[tap_r + m up] in[start_r + D j + m]
// so no zero that was only inserted is ever multiplied.
#pragma once

#include "simd.h"
#include "upfirdn2d.h"

namespace atu::ATU_ISA {
namespace {

constexpr int64_t kScratchElements = 4096;  // of a scratch row, about
constexpr int64_t kChannelBlock = 64;

int64_t gcd(int64_t a, int64_t b) {
  return b == 0 ? a : gcd(b, a % b);
}

// ---- one axis: the phases of its outputs ---------------------------------------------------------------------------

struct Phase {
  int64_t start, tap, count;  // as in the formula above: of `count` taps, tap + m up meets input start + D j + m
};

struct Axis {
  int64_t up, phases, advance;                  // advance: D
  int64_t max_count = 0;                        // of taps, over the phases
  int64_t lowest = INT64_MAX, end = INT64_MIN;  // of the inputs of j = 0, over the phases
  Scratch<Phase> phase;
  Axis(int64_t up, int64_t down, int64_t pad, int64_t taps)
      : up(up), phases(up / gcd(up, down)), advance(down / gcd(up, down)), phase(phases) {
    for (int64_t r = 0; r < phases; ++r) {
      const int64_t t = r * down - pad, start = -floor_div(-t, up), tap = start * up - t;
      const int64_t count = tap < taps ? ceil_div(taps - tap, up) : 0;
      phase.data()[r] = {start, tap, count};
      lowest = min64(lowest, start);
      end = max64(end, start + max64(count, 1));
      max_count = max64(max_count, count);
    }
  }
  const Phase& operator[](int64_t r) const { return phase.data()[r]; }
  // Inputs that `steps` steps of j read.
  int64_t inputs(int64_t steps) const { return end - lowest + advance * (steps - 1); }
};

// ---- the filter ----------------------------------------------------------------------------------------------------

// g with the gain in it: taps [fh * fw], or where it has rank one gy [fh] and gx [fw].
template <typename T>
struct Filter {
  int64_t h, w;
  bool separable;
  Scratch<T> taps, gy, gx;
  explicit Filter(const Upfirdn2dParams& p)
      : h(p.filter_h), w(p.filter_w), separable(p.separable), taps(h * w), gy(h), gx(w) {
    const T* f = static_cast<const T*>(p.f);
    const auto flipped = [&](int64_t i, int64_t n) { return p.flip_filter ? i : n - 1 - i; };
    if (separable) {
      for (int64_t i = 0; i < h; ++i) gy.data()[i] = T(f[flipped(i, h)] * p.gain), gx.data()[i] = f[flipped(i, w)];
      return;
    }
    T pivot = 0;
    int64_t pivot_y = 0, pivot_x = 0;
    for (int64_t i = 0; i < h; ++i) {
      for (int64_t j = 0; j < w; ++j) {
        const T tap = f[flipped(i, h) * w + flipped(j, w)], size = tap < 0 ? -tap : tap;
        taps.data()[i * w + j] = T(tap * p.gain);
        if (size > pivot) pivot = size, pivot_y = i, pivot_x = j;
      }
    }
    if (pivot == 0) return;
    const double top = taps.data()[pivot_y * w + pivot_x];
    const double tolerance = (sizeof(T) == 4 ? 2.4e-7 : 4.5e-16) * (top < 0 ? -top : top);  // two roundings
    separable = top != 0;
    for (int64_t i = 0; i < h; ++i) gy.data()[i] = taps.data()[i * w + pivot_x];
    for (int64_t j = 0; j < w; ++j) gx.data()[j] = T(taps.data()[pivot_y * w + j] / top);
    for (int64_t i = 0; separable && i < h * w; ++i) {
      const double error = double(gy.data()[i / w]) * double(gx.data()[i % w]) - double(taps.data()[i]);
      separable = error <= tolerance && -error <= tolerance;
    }
  }
};

// ---- the plan: what all threads and rows share ---------------------------------------------------------------------

// Columns made at a time: outputs P first_step + r, r < P, of `steps` steps.
struct Strip {
  int64_t first_step, steps;
  int64_t low, inputs;  // the input columns read: low ... low + inputs - 1, some of them outside the image
  int64_t channels;     // 1 when planar
};

template <typename T>
struct Plan {
  const Upfirdn2dParams& p;  // of whose tensors only sizes and strides are used
  const Filter<T>& filter;
  const Axis &x, &y;
  bool streaming;   // the output is written past the caches
  int64_t block;    // channels made together, 1 when planar
  int64_t split;    // parts of a scratch row, by x mod D when planar
  int64_t steps;    // of a strip, at most
  int64_t part;     // elements of a part, whole vectors past its end included
  int64_t slots;    // scratch rows: 1 when separable, else as many as input rows are read at a time
  int64_t terms_y;  // of a vertical and of a horizontal sum, at most
  int64_t terms_x;
  Scratch<T> weights_y;  // [phases of y][terms_y], when separable

  Plan(const Upfirdn2dParams& p, const Filter<T>& filter, const Axis& x, const Axis& y, bool streaming)
      : p(p),
        filter(filter),
        x(x),
        y(y),
        streaming(streaming),
        terms_y(max64(y.max_count, 1)),
        terms_x(max64(x.max_count, 1) * terms_y),
        weights_y(y.phases * terms_y) {
    block = !p.channels_last ? 1 : p.c <= 2 * kChannelBlock ? p.c : kChannelBlock;
    split = p.channels_last ? 1 : x.advance;
    const int64_t about = max64(4, kScratchElements / (block * x.advance));
    // A planar strip begins with a whole vector of the output, which may be written past the caches.
    steps = min64(all_steps(), p.channels_last ? about : ceil_div(about, kLanes<T>) * kLanes<T>);
    part = ceil_div(x.inputs(steps), split) * block + 2 * kLanes<T>;
    slots = filter.separable ? 1 : terms_y;
    for (int64_t r = 0; filter.separable && r < y.phases; ++r) {
      for (int64_t m = 0; m < y[r].count; ++m) {
        weights_y.data()[r * terms_y + m] = filter.gy.data()[y[r].tap + m * y.up];
      }
    }
  }
  int64_t all_steps() const { return ceil_div(p.out_w, x.phases); }
  int64_t row_size() const { return split * part; }
  Strip strip(int64_t first_step, int64_t channels) const {
    const int64_t count = min64(steps, all_steps() - first_step);
    return {first_step, count, x.lowest + x.advance * first_step, x.inputs(count), channels};
  }
  // Output columns of a strip.
  int64_t width(const Strip& s) const { return min64(s.steps * x.phases, p.out_w - s.first_step * x.phases); }
};

}  // namespace
}  // namespace atu::ATU_ISA
