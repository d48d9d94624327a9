// Along one axis, outputs o = P j + r of phase r (P = up / gcd(up, down) phases) are a plain FIR of the input with step
// D = down / gcd:
//     out[P j + r] = sum_m g[tap_r + m up] in[start_r + D j + m]
// so no zero that was only inserted is ever multiplied.
//
// An output row is made in two steps. `Rows::fill` brings input rows into a scratch row in the first-level cache, with
// zeros for what lies outside the image: their weighted sum when the filter is separable (2-d filters of rank one are),
// else a copy of each. `Rows::finish` runs the horizontal FIR from there to the output, vectors running along x when
// planar, along the channels when channels-last. Planar scratch rows are split by x mod D, so that loads are
// contiguous. Small planes, whose rows would not fill vectors, go through `PlaneGroup` instead.
#include "upfirdn2d.h"

#include "cpu_isa.h"
#include "parallel.h"
#include "simd.h"

namespace atu::ATU_ISA {
namespace {

constexpr int64_t kGrain = 8192;            // outputs a thread is worth waking for
constexpr int64_t kScratchElements = 4096;  // of a scratch row, about
constexpr int64_t kChannelBlock = 64;
constexpr int64_t kSmallPlanes = 12 << 10;  // bytes of an input and an output plane, see PlaneGroup

int64_t gcd(int64_t a, int64_t b) {
  return b == 0 ? a : gcd(b, a % b);
}

struct Phase {
  int64_t start, tap, count;
};

struct Axis {
  int64_t up, phases, advance, max_count = 0;
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
};

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

// sum_m weight[m] * source[m][i ...]; N terms, or any number where N is 0.
template <typename T, int N>
struct Sum {
  const T* source[N];
  Vec<T> weight[N];
  Sum(const T* const* sources, const T* weights, int64_t) {
    for (int m = 0; m < N; ++m) source[m] = sources[m], weight[m] = splat(weights[m]);
  }
  Vec<T> operator()(int64_t i) const {
    Vec<T> total = weight[0] * load(source[0] + i);
    for (int m = 1; m < N; ++m) total += weight[m] * load(source[m] + i);
    return total;
  }
};
template <typename T>
struct Sum<T, 0> {
  const T* const* source;
  const T* weight;
  int64_t count;
  Sum(const T* const* sources, const T* weights, int64_t n) : source(sources), weight(weights), count(n) {}
  Vec<T> operator()(int64_t i) const {
    Vec<T> even{}, odd{};  // two chains, for the latency of the additions
    int64_t m = 0;
    for (; m + 2 <= count; m += 2) {
      even += weight[m] * load(source[m] + i);
      odd += weight[m + 1] * load(source[m + 1] + i);
    }
    return m < count ? even + odd + weight[m] * load(source[m] + i) : even + odd;
  }
};

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
    default:
      return f.template operator()<0>();
  }
}

// One thread's scratch and its part of the work.
template <typename T>
class Rows {
  static constexpr int64_t V = kLanes<T>;

 public:
  Rows(const Upfirdn2dParams& p, const Filter<T>& f, const Axis& ax, const Axis& ay, bool streaming)
      : p_(p),
        f_(f),
        ax_(ax),
        ay_(ay),
        streaming_(streaming),
        block_(!p.channels_last           ? 1
               : p.c <= 2 * kChannelBlock ? p.c
                                          : kChannelBlock),
        split_(p.channels_last ? 1 : ax.advance),
        steps_(min64(ceil_div(p.out_w, ax.phases), max64(4, kScratchElements / (block_ * ax.advance)))),
        part_(ceil_div(inputs(steps_), split_) * block_ + 2 * V),
        ring_(f.separable ? 1 : max64(ay.max_count, 1)),
        rows_(ring_ * split_ * part_),
        linear_(split_ > 1 ? split_ * part_ : 0),
        phase_row_(steps_ + V),
        held_(ring_),
        counts_(ax.phases),
        sources_(ax.phases * sources_per_phase()),
        above_(max64(ay.max_count, 1)),
        weights_(ax.phases * sources_per_phase()),
        above_weights_(max64(ay.max_count, 1)) {}

  // Output rows [begin, end) of the image (n, channels c0 ... of a block, or one channel).
  void run(int64_t n, int64_t c0, int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(p_.x) + n * p_.x_stride_n + c0 * p_.x_stride_c;
    T* y = static_cast<T*>(p_.y) + n * p_.y_stride_n + c0 * p_.y_stride_c;
    channels_ = min64(block_, p_.c - c0);
    const int64_t total = ceil_div(p_.out_w, ax_.phases);
    for (int64_t j0 = 0; j0 < total; j0 += steps_) {
      open(j0, min64(steps_, total - j0));
      for (int64_t oy = begin; oy < end; ++oy) {
        const Phase& phase = ay_[oy % ay_.phases];
        const int64_t first = phase.start + oy / ay_.phases * ay_.advance;
        const int64_t m0 = max64(0, -first), m1 = max64(m0, min64(phase.count, p_.h - first));
        if (f_.separable) {
          for (int64_t m = m0; m < m1; ++m) {
            above_.data()[m - m0] = x + (first + m) * p_.x_stride_h;
            above_weights_.data()[m - m0] = f_.gy.data()[phase.tap + m * ay_.up];
          }
          fill(rows_.data(), m1 - m0);
        } else {
          for (int64_t m = m0; m < m1; ++m) hold(x, first + m);
          for (int64_t r = 0; r < ax_.phases; ++r) list_taps(r, phase, first, m0, m1);
        }
        T* out = y + oy * p_.y_stride_h + j0 * ax_.phases * p_.y_stride_w;
        if (p_.channels_last) {
          finish_channels_last(out);
        } else {
          finish_planar(out);
        }
      }
    }
  }

 private:
  // Input columns that `steps` steps of j read.
  int64_t inputs(int64_t steps) const { return ax_.end - ax_.lowest + ax_.advance * (steps - 1); }
  int64_t sources_per_phase() const { return max64(max64(ay_.max_count, 1) * max64(ax_.max_count, 1), 1); }
  T* row(int64_t slot) const { return rows_.data() + slot * split_ * part_; }

  // Begins columns j0 ... j0 + steps - 1. What fill does not write, outside the image, is zero from here on.
  void open(int64_t j0, int64_t steps) {
    j0_ = j0, count_ = steps;
    const int64_t low = ax_.lowest + ax_.advance * j0;
    for (int64_t i = 0; i < ring_; ++i) held_.data()[i] = INT64_MIN;
    if (low == low_ && opened_channels_ == channels_) return;
    low_ = low, opened_channels_ = channels_;
    for (int64_t i = 0; i < ring_ * split_ * part_; ++i) rows_.data()[i] = 0;
    for (int64_t i = 0; split_ > 1 && i < split_ * part_; ++i) linear_.data()[i] = 0;
    for (int64_t r = 0; f_.separable && r < ax_.phases; ++r) list_taps(r, ay_[0], 0, 0, 1);
  }

  // row = weighted sum of the `n` input rows in above_, zero outside the image.
  void fill(T* row, int64_t n) {
    const int64_t a = max64(low_, 0), b = min64(low_ + inputs(count_), p_.w);
    T* linear = split_ > 1 ? linear_.data() : row;
    with_count(n, [&]<int N>() {
      const Sum<T, N> sum(above_.data(), above_weights_.data(), n);
      const bool flat = channels_ == p_.x_stride_w || b - a <= 1;
      const int64_t pixels = flat ? 1 : b - a, length = flat ? (b - a) * channels_ : channels_;
      for (int64_t k = 0; k < pixels; ++k) {
        const int64_t from = (a + k) * p_.x_stride_w;
        T* to = linear + (a + k - low_) * channels_;
        int64_t i = 0;
        for (; i + V <= length; i += V) store(to + i, sum(from + i));
        if (i < length) store(to + i, partial(n, from + i, int(length - i)));
      }
    });
    if (split_ == 2) {
      const int64_t length = part_ - 2 * V;
      for (int64_t i = 0; i < length; i += V) {
        const Pair<T> halves = deinterleave<T>(load(linear + 2 * i), load(linear + 2 * i + V));
        store(row + i, halves.first);
        store(row + part_ + i, halves.second);
      }
    } else if (split_ > 2) {
      for (int64_t d = 0; d < split_; ++d) {
        for (int64_t i = 0; i < part_ - 2 * V; ++i) row[d * part_ + i] = linear[d + split_ * i];
      }
    }
  }

  // The same sum where less than a vector is left to read.
  Vec<T> partial(int64_t n, int64_t i, int count) const {
    Vec<T> total{};
    for (int64_t m = 0; m < n; ++m) total += above_weights_.data()[m] * load_partial(above_.data()[m] + i, count);
    return total;
  }

  // Input row iy in its slot of the ring, for filters that are not separable.
  void hold(const T* x, int64_t iy) {
    const int64_t slot = iy % ring_;
    if (held_.data()[slot] == iy) return;
    held_.data()[slot] = iy;
    above_.data()[0] = x + iy * p_.x_stride_h;
    above_weights_.data()[0] = T(1);
    fill(row(slot), 1);
  }

  // Sources and weights of horizontal phase r. Those of separable filters are the same in every row.
  void list_taps(int64_t r, const Phase& vertical, int64_t first, int64_t m0, int64_t m1) {
    const Phase& phase = ax_[r];
    const T** source = sources_.data() + r * sources_per_phase();
    T* weight = weights_.data() + r * sources_per_phase();
    const int64_t rows = f_.separable ? 1 : m1 - m0;
    for (int64_t k = 0; k < rows; ++k) {
      const T* base = f_.separable ? rows_.data() : row((first + m0 + k) % ring_);
      const T* taps = f_.separable ? f_.gx.data() : f_.taps.data() + (vertical.tap + (m0 + k) * ay_.up) * f_.w;
      for (int64_t m = 0; m < phase.count; ++m) {
        const int64_t column = phase.start - ax_.lowest + m;
        *source++ = base + (column % split_ * part_ + column / split_ * channels_);
        *weight++ = taps[phase.tap + m * ax_.up];
      }
    }
    counts_.data()[r] = rows * phase.count;
  }

  template <int N>
  Sum<T, N> sum_of(int64_t r) const {
    const int64_t at = r * sources_per_phase();
    return {sources_.data() + at, weights_.data() + at, counts_.data()[r]};
  }

  void put(T* to, Vec<T> v) const {
    if (streaming_) {
      stream(to, v);
    } else {
      store(to, v);
    }
  }

  void finish_planar(T* out) {
    const int64_t width = min64(count_ * ax_.phases, p_.out_w - j0_ * ax_.phases);
    if (ax_.phases == 1) {
      with_count(counts_.data()[0], [&]<int N>() {
        const Sum<T, N> sum = sum_of<N>(0);
        int64_t j = 0;
        for (; j + V <= width; j += V) put(out + j, sum(j));
        if (j < width) store_partial(out + j, sum(j), int(width - j));
      });
    } else if (ax_.phases == 2) {
      const int64_t n0 = counts_.data()[0], n1 = counts_.data()[1];
      with_count(n0 == n1 ? n0 : 0, [&]<int N>() {
        const Sum<T, N> even = sum_of<N>(0), odd = sum_of<N>(1);
        for (int64_t j = 0; 2 * j < width; j += V) {
          const Pair<T> both = interleave<T>(even(j), odd(j));
          T* to = out + 2 * j;
          const int64_t left = width - 2 * j;
          if (left >= 2 * V) {
            put(to, both.first);
            put(to + V, both.second);
          } else if (left >= V) {
            store(to, both.first);
            store_partial(to + V, both.second, int(left - V));
          } else {
            store_partial(to, both.first, int(left));
          }
        }
      });
    } else {
      for (int64_t r = 0; r < min64(ax_.phases, width); ++r) {
        const Sum<T, 0> sum = sum_of<0>(r);
        const int64_t steps = ceil_div(width - r, ax_.phases);
        for (int64_t j = 0; j < steps; j += V) store(phase_row_.data() + j, sum(j));
        for (int64_t j = 0; j < steps; ++j) out[r + j * ax_.phases] = phase_row_.data()[j];
      }
    }
  }

  void finish_channels_last(T* out) {
    const int64_t width = min64(count_ * ax_.phases, p_.out_w - j0_ * ax_.phases);
    for (int64_t r = 0; r < min64(ax_.phases, width); ++r) {
      const int64_t steps = ceil_div(width - r, ax_.phases);
      with_count(counts_.data()[r], [&]<int N>() {
        const Sum<T, N> sum = sum_of<N>(r);
        // Without resampling the row is one run of memory, and only its end may leave part of a vector.
        const bool flat = ax_.phases == 1 && ax_.advance == 1 && channels_ == p_.y_stride_w;
        const int64_t pixels = flat ? 1 : steps, length = flat ? steps * channels_ : channels_;
        const int64_t step = ax_.advance * channels_, out_step = ax_.phases * p_.y_stride_w;
        T* first = out + r * p_.y_stride_w;
        if (length == V) {
          for (int64_t j = 0; j < pixels; ++j) put(first + j * out_step, sum(j * step));
          return;
        }
        for (int64_t j = 0; j < pixels; ++j) {
          const int64_t from = j * step;
          T* to = first + j * out_step;
          int64_t c = 0;
          for (; c + V <= length; c += V) put(to + c, sum(from + c));
          if (c < length) store_partial(to + c, sum(from + c), int(length - c));
        }
      });
    }
  }

  const Upfirdn2dParams& p_;
  const Filter<T>& f_;
  const Axis &ax_, &ay_;
  bool streaming_;
  int64_t block_, split_, steps_, part_, ring_;
  Scratch<T> rows_, linear_, phase_row_;
  Scratch<int64_t> held_;              // the input row in each slot of the ring
  Scratch<int64_t> counts_;            // of sources, of each horizontal phase
  Scratch<const T*> sources_, above_;  // of the horizontal and of the vertical sum
  Scratch<T> weights_, above_weights_;
  int64_t j0_ = 0, count_ = 0, channels_ = 1, low_ = INT64_MIN, opened_channels_ = 0;
};

// Small planes: a row fills only part of a vector, so as many planes as a vector has lanes are brought into one image
// laid out channels-last, filtered there, and brought back.
template <typename T>
class PlaneGroup {
  static constexpr int64_t V = kLanes<T>;

 public:
  PlaneGroup(const Upfirdn2dParams& p, const Filter<T>& f, const Axis& ax, const Axis& ay, bool streaming)
      : p_(p),
        in_(ceil_div(p.h * p.w, V) * V * V),
        out_(ceil_div(p.out_h * p.out_w, V) * V * V),
        inner_(inner()),
        rows_(inner_, f, ax, ay, false),
        streaming_(streaming) {}

  // Planes first ... first + V - 1 of all N * C, as far as there are that many.
  void run(int64_t first) {
    const int64_t planes = min64(V, p_.n * p_.c - first), in = p_.h * p_.w, out = p_.out_h * p_.out_w;
    const T* x = static_cast<const T*>(p_.x) + first * in;
    T* y = static_cast<T*>(p_.y) + first * out;
    Vec<T> tile[V];
    for (int64_t i = 0; i < in; i += V) {
      const bool whole = i + V <= in;
      for (int64_t c = 0; c < V; ++c) {
        const T* from = x + min64(c, planes - 1) * in + i;
        tile[c] = whole ? load(from) : load_partial(from, int(in - i));
      }
      transpose<T>(tile);
      for (int64_t c = 0; c < V; ++c) store(in_.data() + (i + c) * V, tile[c]);
    }
    rows_.run(0, 0, 0, p_.out_h);
    for (int64_t i = 0; i < out; i += V) {
      for (int64_t c = 0; c < V; ++c) tile[c] = load(out_.data() + (i + c) * V);
      transpose<T>(tile);
      for (int64_t c = 0; c < planes; ++c) {
        T* to = y + c * out + i;
        if (i + V > out) {
          store_partial(to, tile[c], int(out - i));
        } else if (streaming_) {
          stream(to, tile[c]);
        } else {
          store(to, tile[c]);
        }
      }
    }
  }

 private:
  Upfirdn2dParams inner() const {
    Upfirdn2dParams q = p_;
    q.x = in_.data(), q.y = out_.data(), q.channels_last = true, q.n = 1, q.c = V;
    q.x_stride_n = 0, q.x_stride_c = 1, q.x_stride_h = V * p_.w, q.x_stride_w = V;
    q.y_stride_n = 0, q.y_stride_c = 1, q.y_stride_h = V * p_.out_w, q.y_stride_w = V;
    return q;
  }

  const Upfirdn2dParams& p_;
  Scratch<T> in_, out_;
  const Upfirdn2dParams inner_;
  Rows<T> rows_;
  bool streaming_;
};

template <typename T>
bool small_planes(const Upfirdn2dParams& p) {
  const bool dense = p.x_stride_w == 1 && p.x_stride_h == p.w && p.x_stride_c == p.h * p.w &&
                     p.x_stride_n == p.c * p.x_stride_c && p.y_stride_h == p.out_w &&
                     p.y_stride_c == p.out_h * p.out_w && p.y_stride_n == p.c * p.y_stride_c;
  const int64_t bytes = (p.h * p.w + p.out_h * p.out_w) * int64_t(sizeof(T));
  return !p.channels_last && dense && kLanes<T> >= 4 && 2 * p.n * p.c >= kLanes<T> && bytes <= kSmallPlanes;
}

template <typename T>
void run(const Upfirdn2dParams& p) {
  const Filter<T> filter(p);
  const Axis ax(p.up_x, p.down_x, p.pad_x0, p.filter_w), ay(p.up_y, p.down_y, p.pad_y0, p.filter_h);
  const int64_t outputs = p.n * p.c * p.out_h * p.out_w;
  // Whole vectors of every output row must be aligned.
  const auto aligned = [](int64_t stride) { return stride * int64_t(sizeof(T)) % ATU_VECTOR_BYTES == 0; };
  const bool streaming = outputs * int64_t(sizeof(T)) >= kStreamBytes && to_aligned(static_cast<T*>(p.y)) == 0 &&
                         aligned(p.y_stride_n) && aligned(p.y_stride_h) &&
                         (p.channels_last ? aligned(p.y_stride_w) : aligned(p.y_stride_c));
  const int threads = threads_for(outputs, kGrain);
  if (small_planes<T>(p)) {
    parallel_for(ceil_div(p.n * p.c, kLanes<T>), threads, [&](int64_t begin, int64_t end, int) {
      PlaneGroup<T> group(p, filter, ax, ay, streaming);
      for (int64_t i = begin; i < end; ++i) group.run(i * kLanes<T>);
      stream_fence();
    });
    return;
  }
  const int64_t block = !p.channels_last ? 1 : p.c <= 2 * kChannelBlock ? p.c : kChannelBlock;
  const int64_t blocks = ceil_div(p.c, block), rows = p.n * blocks * p.out_h;
  parallel_for(rows, threads, [&](int64_t begin, int64_t end, int) {
    Rows<T> worker(p, filter, ax, ay, streaming);
    for (int64_t i = begin; i < end;) {
      const int64_t image = i / p.out_h, oy = i % p.out_h, stop = min64(p.out_h, oy + end - i);
      worker.run(image / blocks, image % blocks * block, oy, stop);
      i += stop - oy;
    }
    stream_fence();
  });
}

}  // namespace

void upfirdn2d_cpu(const Upfirdn2dParams& p) {
  if (p.n * p.c * p.out_h * p.out_w == 0) return;
  if (p.dtype == DType::f64) {
    run<double>(p);
  } else {
    run<float>(p);
  }
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(upfirdn2d_cpu, Upfirdn2dParams)
