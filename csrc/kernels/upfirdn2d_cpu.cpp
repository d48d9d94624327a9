// An output row is made in two steps, a strip of columns at a time. `RowCache` brings input rows into scratch rows in
// the first-level cache, with zeros for what lies outside the image: their weighted sum when the filter is separable
// (2-d filters of rank one are), else a copy of each. `write_planar` or `write_channels_last` runs the horizontal FIR
// from there to the output, vectors running along x when planar, along the channels when channels-last. Planar scratch
// rows are split by x mod D, so that loads are contiguous. `RowMaker` does both steps for one thread.
//
// Small planes, whose rows would not fill vectors, are brought into channels-last images first (`filter_small_planes`).
#include "upfirdn2d.h"

#include "cpu_isa.h"
#include "parallel.h"
#include "simd.h"
#include "upfirdn2d_plan_cpu.h"
#include "upfirdn2d_sums_cpu.h"

namespace atu::ATU_ISA {
namespace {

constexpr int64_t kGrain = 8192;            // outputs a thread is worth waking for
constexpr int64_t kSmallPlanes = 12 << 10;  // bytes of an input and an output plane, see filter_small_planes

// The scratch of all threads.
template <typename T>
struct Buffers {
  ThreadScratch<T> rows;       // [slots][split][part]
  ThreadScratch<T> unsplit;    // a row before it is split
  ThreadScratch<T> phase_row;  // one phase of an output row
  ThreadScratch<int64_t> held;
  ThreadScratch<ListedTerms<T>> terms;  // of the horizontal phases
  ThreadScratch<const T*> sources;
  ThreadScratch<T> weights;
  Buffers(const Plan<T>& plan, int threads)
      : rows(plan.slots * plan.row_size(), threads),
        unsplit(plan.split > 1 ? plan.row_size() : 0, threads),
        phase_row(plan.steps + kLanes<T>, threads),
        held(plan.slots, threads),
        terms(plan.x.phases, threads),
        sources(plan.x.phases * plan.terms_x, threads),
        weights(plan.x.phases * plan.terms_x, threads) {}
};

// ---- first step: scratch rows --------------------------------------------------------------------------------------

template <typename T>
class RowCache {
  static constexpr int64_t V = kLanes<T>;

 public:
  RowCache(const Plan<T>& plan, const Buffers<T>& buffers, int thread)
      : plan_(plan),
        rows_(buffers.rows.of(thread)),
        unsplit_(buffers.unsplit.of(thread)),
        held_(buffers.held.of(thread)) {}

  // Begins a strip of an image. True where its columns lie otherwise than the last strip's; what fill does not write,
  // outside the image, is zero from here on then.
  bool open(const Strip& strip) {
    for (int64_t slot = 0; slot < plan_.slots; ++slot) held_[slot] = INT64_MIN;
    if (strip.low == low_ && strip.channels == channels_) return false;
    low_ = strip.low, channels_ = strip.channels;
    for (int64_t i = 0; i < plan_.slots * plan_.row_size(); ++i) rows_[i] = 0;
    for (int64_t i = 0; plan_.split > 1 && i < plan_.row_size(); ++i) unsplit_[i] = 0;
    return true;
  }

  // Where column low + i of the row in a slot begins.
  const T* column(int64_t slot, int64_t i) const {
    const T* row = rows_ + slot * plan_.row_size();
    if (plan_.split == 1) return row + i * channels_;
    return row + i % plan_.split * plan_.part + i / plan_.split;
  }

  // Slot = the weighted sum of input rows.
  template <typename S>
  void fill(int64_t slot, const Strip& strip, const RowTerms<S>& input) {
    T* row = rows_ + slot * plan_.row_size();
    gather(plan_.split > 1 ? unsplit_ : row, strip, input);
    if (plan_.split > 1) split(row);
  }

  // Brings input row iy, at `input`, into its slot, where it is not there yet.
  template <typename S>
  void hold(const S* input, int64_t iy, const Strip& strip) {
    if (held_[slot_of(iy)] == iy) return;
    held_[slot_of(iy)] = iy;
    const T one = 1;
    fill(slot_of(iy), strip, RowTerms<S>{input, 0, &one, 1});
  }
  int64_t slot_of(int64_t iy) const { return iy % plan_.slots; }

 private:
  template <typename S>
  void gather(T* row, const Strip& strip, const RowTerms<S>& input) {
    const int64_t begin = max64(low_, 0), end = min64(low_ + strip.inputs, plan_.p.w), stride = plan_.p.x_stride_w;
    const int64_t channels = channels_;
    // Pixels next to each other are one run of memory.
    const bool flat = channels == stride || end - begin <= 1;
    const int64_t pixels = flat ? 1 : end - begin, length = flat ? (end - begin) * channels : channels;
    const Runs runs{pixels, length, begin * stride, stride, channels};
    with_count(input.count,
               [&]<int N>() { write_sums<N, false>(input, runs, row + (begin - low_) * channels, false); });
  }

  // From unsplit_ to a row.
  void split(T* row) {
    const int64_t parts = plan_.split, length = plan_.part - 2 * V;
    if (parts == 2) {
      for (int64_t i = 0; i < length; i += V) {
        const Pair<T> halves = deinterleave<T>(load(unsplit_ + 2 * i), load(unsplit_ + 2 * i + V));
        store(row + i, halves.first);
        store(row + plan_.part + i, halves.second);
      }
      return;
    }
    for (int64_t d = 0; d < parts; ++d) {
      for (int64_t i = 0; i < length; ++i) row[d * plan_.part + i] = unsplit_[d + parts * i];
    }
  }

  const Plan<T>& plan_;
  T *rows_, *unsplit_;
  int64_t* held_;  // the input row in each slot, when not separable
  int64_t low_ = INT64_MIN, channels_ = 0;
};

// ---- second step: output rows --------------------------------------------------------------------------------------

// The strip's part of an output row, from one sum a horizontal phase. phase_row: scratch.
template <typename T, typename S>
void write_planar(const Plan<T>& plan, const Strip& strip, const ListedTerms<T>* horizontal, T* phase_row, S* out) {
  const int64_t phases = plan.x.phases, width = plan.width(strip);
  if (phases == 2) {
    const ListedTerms<T>&even = horizontal[0], &odd = horizontal[1];
    with_count(even.count == odd.count ? even.count : 0,
               [&]<int N>() { write_alternating<N>(even, odd, width, out, plan.streaming); });
    return;
  }
  const bool direct = phases == 1;
  for (int64_t r = 0; r < min64(phases, width); ++r) {
    const ListedTerms<T>& terms = horizontal[r];
    const int64_t steps = ceil_div(width - r, phases);
    const Runs row{1, direct ? steps : ceil_div(steps, kLanes<T>) * kLanes<T>, 0, 0, 0};
    with_count(terms.count, [&]<int N>() {
      if (direct) return write_sums<N, true>(terms, row, out, plan.streaming);
      write_sums<N, true>(terms, row, phase_row, false);
    });
    for (int64_t j = 0; !direct && j < steps; ++j) out[r + j * phases] = phase_row[j];
  }
}

template <typename T, typename S>
void write_channels_last(const Plan<T>& plan, const Strip& strip, const ListedTerms<T>* horizontal, S* out) {
  const int64_t phases = plan.x.phases, advance = plan.x.advance, width = plan.width(strip);
  const int64_t channels = strip.channels, stride = plan.p.y_stride_w;
  // Without resampling the row is one run of memory, and only its end may leave part of a vector.
  const bool flat = phases == 1 && advance == 1 && channels == stride;
  for (int64_t r = 0; r < min64(phases, width); ++r) {
    const ListedTerms<T>& terms = horizontal[r];
    const int64_t steps = ceil_div(width - r, phases);
    const Runs pixels{steps, channels, 0, advance * channels, phases * stride}, row{1, steps * channels, 0, 0, 0};
    with_count(terms.count,
               [&]<int N>() { write_sums<N, true>(terms, flat ? row : pixels, out + r * stride, plan.streaming); });
  }
}

// ---- both steps ----------------------------------------------------------------------------------------------------

// Makes output rows, on one thread.
template <typename T>
class RowMaker {
 public:
  RowMaker(const Plan<T>& plan, const Buffers<T>& buffers, int thread)
      : plan_(plan),
        cache_(plan, buffers, thread),
        horizontal_(buffers.terms.of(thread)),
        phase_row_(buffers.phase_row.of(thread)) {
    const T** sources = buffers.sources.of(thread);
    T* weights = buffers.weights.of(thread);
    for (int64_t r = 0; r < plan.x.phases; ++r) {
      horizontal_[r] = {sources + r * plan.terms_x, weights + r * plan.terms_x, 0};
    }
  }

  // Output rows [begin, end) of one image, or of a block of its channels that begins at x and y.
  template <typename S>
  void run(const S* x, S* y, int64_t channels, int64_t begin, int64_t end) {
    for (int64_t j = 0; j < plan_.all_steps(); j += plan_.steps) {
      const Strip strip = plan_.strip(j, channels);
      const bool moved = cache_.open(strip);
      if (moved && plan_.filter.separable) list_separable_terms();
      for (int64_t oy = begin; oy < end; ++oy) {
        read(strip, x, oy);
        S* out = y + oy * plan_.p.y_stride_h + j * plan_.x.phases * plan_.p.y_stride_w;
        if (plan_.p.channels_last) {
          write_channels_last(plan_, strip, horizontal_, out);
        } else {
          write_planar(plan_, strip, horizontal_, phase_row_, out);
        }
      }
    }
  }

 private:
  // Fills the scratch rows that output row oy is made from.
  template <typename S>
  void read(const Strip& strip, const S* x, int64_t oy) {
    const Axis& axis = plan_.y;
    const Phase& phase = axis[oy % axis.phases];
    const int64_t first = phase.start + oy / axis.phases * axis.advance;
    const int64_t m0 = max64(0, -first), m1 = max64(m0, min64(phase.count, plan_.p.h - first));
    if (plan_.filter.separable) {
      const T* weights = plan_.weights_y.data() + oy % axis.phases * plan_.terms_y;
      const int64_t stride = plan_.p.x_stride_h;
      cache_.fill(0, strip, RowTerms<S>{x + (first + m0) * stride, stride, weights + m0, m1 - m0});
      return;
    }
    clear_terms();
    for (int64_t m = m0; m < m1; ++m) {
      cache_.hold(x + (first + m) * plan_.p.x_stride_h, first + m, strip);
      list_terms(cache_.slot_of(first + m), plan_.filter.taps.data() + (phase.tap + m * axis.up) * plan_.filter.w);
    }
  }

  void clear_terms() {
    for (int64_t r = 0; r < plan_.x.phases; ++r) horizontal_[r].count = 0;
  }
  // Adds the terms that the row in a slot gives to each horizontal phase.
  void list_terms(int64_t slot, const T* taps) {
    for (int64_t r = 0; r < plan_.x.phases; ++r) {
      const Phase& phase = plan_.x[r];
      ListedTerms<T> terms = horizontal_[r];
      for (int64_t m = 0; m < phase.count; ++m) {
        terms.add(cache_.column(slot, phase.start - plan_.x.lowest + m), taps[phase.tap + m * plan_.x.up]);
      }
      horizontal_[r].count = terms.count;
    }
  }
  // They are the same in every row.
  void list_separable_terms() {
    clear_terms();
    list_terms(0, plan_.filter.gx.data());
  }

  const Plan<T>& plan_;
  RowCache<T> cache_;
  ListedTerms<T>* horizontal_;  // of each phase
  T* phase_row_;
};

template <typename S>
void filter_images(const Plan<Compute<S>>& plan, int threads) {
  using T = Compute<S>;
  const Upfirdn2dParams& p = plan.p;
  const Buffers<T> buffers(plan, threads);
  const int64_t blocks = ceil_div(p.c, plan.block);
  parallel_for(p.n * blocks * p.out_h, threads, [&](int64_t begin, int64_t end, int thread) {
    RowMaker<T> maker(plan, buffers, thread);
    for (int64_t i = begin; i < end;) {
      const int64_t image = i / p.out_h, oy = i % p.out_h, stop = min64(p.out_h, oy + end - i);
      const int64_t n = image / blocks, c = image % blocks * plan.block;
      const S* x = static_cast<const S*>(p.x) + n * p.x_stride_n + c * p.x_stride_c;
      S* y = static_cast<S*>(p.y) + n * p.y_stride_n + c * p.y_stride_c;
      maker.run(x, y, min64(plan.block, p.c - c), oy, stop);
      i += stop - oy;
    }
    stream_fence();
  });
}

// ---- small planes --------------------------------------------------------------------------------------------------

// Planes of one size, as many as a vector has lanes, brought into an image laid out channels-last: [size, kLanes].
// `count` planes are there, the last one stands for the rest.
template <typename S, typename T>
void interleave_planes(const S* planes, int64_t count, int64_t size, T* image) {
  constexpr int64_t V = kLanes<T>;
  Vec<T> tile[V];
  for (int64_t i = 0; i < size; i += V) {
    const bool whole = i + V <= size;
    for (int64_t c = 0; c < V; ++c) {
      const S* from = planes + min64(c, count - 1) * size + i;
      tile[c] = whole ? load(from) : load(from, int(size - i));
    }
    transpose<T>(tile);
    for (int64_t c = 0; c < V; ++c) store(image + (i + c) * V, tile[c]);
  }
}

// And back.
template <typename T, typename S>
void separate_planes(const T* image, S* planes, int64_t count, int64_t size, bool streaming) {
  constexpr int64_t V = kLanes<T>;
  Vec<T> tile[V];
  for (int64_t i = 0; i < size; i += V) {
    for (int64_t c = 0; c < V; ++c) tile[c] = load(image + (i + c) * V);
    transpose<T>(tile);
    for (int64_t c = 0; c < count; ++c) {
      S* to = planes + c * size + i;
      if (i + V > size) {
        store(to, tile[c], int(size - i));
      } else {
        put(to, tile[c], Full{}, streaming);
      }
    }
  }
}

// A row of a small plane fills only part of a vector.
template <typename T>
bool small_planes(const Upfirdn2dParams& p) {
  const bool dense = p.x_stride_w == 1 && p.x_stride_h == p.w && p.x_stride_c == p.h * p.w &&
                     p.x_stride_n == p.c * p.x_stride_c && p.y_stride_h == p.out_w &&
                     p.y_stride_c == p.out_h * p.out_w && p.y_stride_n == p.c * p.y_stride_c;
  const int64_t bytes = (p.h * p.w + p.out_h * p.out_w) * int64_t(sizeof(T));
  return !p.channels_last && dense && kLanes<T> >= 4 && 2 * p.n * p.c >= kLanes<T> && bytes <= kSmallPlanes;
}

template <typename S>
void filter_small_planes(const Upfirdn2dParams& p, const Filter<Compute<S>>& filter, const Axis& ax, const Axis& ay,
                         bool streaming, int threads) {
  using T = Compute<S>;
  constexpr int64_t V = kLanes<T>;
  Upfirdn2dParams interleaved = p;
  interleaved.channels_last = true, interleaved.n = 1, interleaved.c = V;
  interleaved.x_stride_h = V * p.w, interleaved.x_stride_w = V;
  interleaved.y_stride_h = V * p.out_w, interleaved.y_stride_w = V;
  const Plan<T> plan(interleaved, filter, ax, ay, false);
  const Buffers<T> buffers(plan, threads);
  const int64_t planes = p.n * p.c, in = p.h * p.w, out = p.out_h * p.out_w;
  const ThreadScratch<T> inputs(ceil_div(in, V) * V * V, threads), outputs(ceil_div(out, V) * V * V, threads);
  parallel_for(ceil_div(planes, V), threads, [&](int64_t begin, int64_t end, int thread) {
    RowMaker<T> maker(plan, buffers, thread);
    for (int64_t first = begin * V; first < min64(end * V, planes); first += V) {
      const int64_t count = min64(V, planes - first);
      interleave_planes(static_cast<const S*>(p.x) + first * in, count, in, inputs.of(thread));
      maker.run(inputs.of(thread), outputs.of(thread), V, 0, p.out_h);
      separate_planes(outputs.of(thread), static_cast<S*>(p.y) + first * out, count, out, streaming);
    }
    stream_fence();
  });
}

template <typename S>
void run(const Upfirdn2dParams& p) {
  using T = Compute<S>;
  const Filter<T> filter(p);
  const Axis ax(p.up_x, p.down_x, p.pad_x0, p.filter_w), ay(p.up_y, p.down_y, p.pad_y0, p.filter_h);
  const int64_t outputs = p.n * p.c * p.out_h * p.out_w;
  // Whole vectors of every output row must be aligned.
  const auto aligned = [](int64_t stride) { return stride * int64_t(sizeof(S)) % kStoredBytes<S> == 0; };
  const bool streaming = outputs * int64_t(sizeof(S)) >= kStreamBytes && to_aligned(static_cast<S*>(p.y)) == 0 &&
                         aligned(p.y_stride_n) && aligned(p.y_stride_h) &&
                         (p.channels_last ? aligned(p.y_stride_w) : aligned(p.y_stride_c));
  const int threads = threads_for(outputs, kGrain);
  if (small_planes<T>(p)) return filter_small_planes<S>(p, filter, ax, ay, streaming, threads);
  filter_images<S>(Plan<T>(p, filter, ax, ay, streaming), threads);
}

}  // namespace

void upfirdn2d_cpu(const Upfirdn2dParams& p) {
  if (p.n * p.c * p.out_h * p.out_w == 0) return;
  with_type(p.dtype, [&]<typename S>() { run<S>(p); });
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(upfirdn2d_cpu, Upfirdn2dParams)
