// The tensors are swept once, in memory order, in rows over which the bias is one number (inner >= kScalarRow) or a
// vector that is read beside the row (channels-last and small planes; there the bias is laid out once as it repeats).
#include "bias_act.h"

#include "activation_cpu.h"
#include "cpu_isa.h"
#include "parallel.h"

namespace atu::ATU_ISA {
namespace {

constexpr int64_t kScalarRow = 64;
constexpr int64_t kVectorRow = 256;  // a shorter repeating bias is repeated up to this length
constexpr int64_t kGrain = 16384;    // elements a thread is worth waking for
constexpr int64_t kBlock = 64;       // threads' parts begin at multiples of this
constexpr int64_t kFlushRows = 256;  // float partial sums of this many elements go to double precision
constexpr int64_t kFlushElements = 4096;

// An array written to; `streaming` when its vectors go past the caches.
template <typename S>
struct Target {
  S* data;
  bool streaming;
  void put(int64_t i, Vec<S> v, Full) const {
    if (streaming) {
      stream(data + i, v);
    } else {
      store(data + i, v);
    }
  }
  void put(int64_t i, Vec<S> v, int count) const { store(data + i, v, count); }
};

// for_vectors, whole vectors aligned in `out` where it streams.
template <typename S, typename Body>
inline void sweep(int64_t begin, int64_t end, const Target<S>& out, const Body& body) {
  int64_t i = begin;
  if (out.streaming) {
    if (const int64_t head = min64(to_aligned(out.data + i), end - i)) {
      body(i, int(head));
      i += head;
    }
  }
  for_vectors<S>(i, end, body);
}

// How the flat arrays fall into rows, and the bias of each.
template <typename S>
class Rows {
  using T = Compute<S>;

 public:
  Rows(const BiasActParams& p, bool per_channel)
      : vector(per_channel && p.inner < kScalarRow),
        length(!per_channel ? p.numel
               : vector     ? p.inner * p.channels
                            : p.inner),
        channels_(p.channels),
        inner_(p.inner),
        bias_(static_cast<const S*>(p.bias)),
        laid_out_(vector ? (length = repeated(length), length) : 0) {
    for (int64_t j = 0; vector && j < length; ++j) laid_out_.data()[j] = bias_ == nullptr ? T(0) : T(bias_[channel(j)]);
  }
  bool vector;
  int64_t length;
  int64_t channel(int64_t i) const { return i / inner_ % channels_; }
  T scalar(int64_t i) const { return bias_ == nullptr ? T(0) : T(bias_[channel(i)]); }
  const T* laid_out() const { return laid_out_.data(); }

 private:
  // A multiple of `period`, at least kVectorRow; and of the vector, where that is not much more: no part of a vector is
  // left over at a row's end then.
  static int64_t repeated(int64_t period) {
    int64_t whole = period;
    while (whole % kLanes<T> != 0) whole += period;
    const int64_t unit = whole <= 8 * kVectorRow ? whole : period;
    return unit * ceil_div(kVectorRow, unit);
  }

  int64_t channels_, inner_;
  const S* bias_;
  Scratch<T> laid_out_;
};

// row(begin, end, offset of begin in its row), over the rows and parts of rows in [begin, end).
template <typename Row>
inline void each_row(int64_t begin, int64_t end, int64_t length, const Row& row) {
  for (int64_t i = begin; i < end;) {
    const int64_t offset = i % length, stop = min64(end, i + length - offset);
    row(i, stop, offset);
    i = stop;
  }
}

template <typename Body>
inline void parts(int64_t numel, int threads, const Body& body) {
  parallel_for(ceil_div(numel, kBlock), threads, [&](int64_t begin, int64_t end, int thread) {
    body(begin * kBlock, min64(end * kBlock, numel), thread);
    stream_fence();
  });
}

// Whether a sweep computes so little for each vector that streaming pays: where exponentials stand between them, stores
// past the caches hold up the loads (measured: 2 to 3 times slower than plain ones).
template <Act A, Reference K = Reference::x>
constexpr bool kLight =
    A == Act::linear || A == Act::relu || A == Act::lrelu || (K == Reference::y && A != Act::softplus);

template <bool Light, typename S>
inline Target<S> target(void* data, int64_t numel) {
  // The outputs of one sweep are aligned alike: all start at a multiple of the vector where they stream.
  S* p = static_cast<S*>(data);
  return {p, Light && numel * int64_t(sizeof(S)) >= kStreamBytes && to_aligned(p) == 0};
}

template <Act A, typename S>
void forward(const BiasActForwardParams& p) {
  using T = Compute<S>;
  const S* x = static_cast<const S*>(p.x);
  const Target<S> y = target<kLight<A>, S>(p.y, p.numel);
  const Output<A, T> output(p);
  const Rows<S> rows(p, p.bias != nullptr);
  parts(p.numel, threads_for(p.numel, kGrain), [&](int64_t begin, int64_t end, int) {
    each_row(begin, end, rows.length, [&](int64_t i0, int64_t i1, int64_t offset) {
      if (rows.vector) {
        const T* bias = rows.laid_out() + offset - i0;
        sweep(i0, i1, y, [&](int64_t i, auto n) { y.put(i, output(load(x + i, n) + load(bias + i, n)), n); });
      } else {
        const T bias = rows.scalar(i0);
        sweep(i0, i1, y, [&](int64_t i, auto n) { y.put(i, output(load(x + i, n) + bias), n); });
      }
    });
  });
}

// A y that was rounded when it was stored is compared with the bound rounded alike.
template <Reference K, Act A, typename S, typename Params>
inline Output<A, Compute<S>> output_read_from(const Params& p) {
  Output<A, Compute<S>> output(p);
  if constexpr (K == Reference::y) output.bound = S(output.bound);
  return output;
}

// dy/dv and d2y/dv2 from the saved tensor r, to which `bias` is added when it is x.
template <Reference K, Act A, typename T>
inline Derivatives<T> derivatives(const Output<A, T>& output, Vec<T> r, Vec<T> bias) {
  if constexpr (K == Reference::none) return {splat(output.gain), Vec<T>{}};
  if constexpr (K == Reference::y) return output.derivatives_from_output(r);
  return output.derivatives(r + bias);
}

// Sums of dx for each channel, in double precision: for each thread one total a channel (rows with a scalar bias) or
// one for each element of the repeating row, folded at the end in a fixed order.
template <typename S>
class ChannelSums {
  using T = Compute<S>;

 public:
  ChannelSums(const Rows<S>& rows, int64_t channels, int threads, bool wanted)
      : rows_(rows),
        channels_(channels),
        threads_(threads),
        width_(!wanted       ? 0
               : rows.vector ? rows.length
                             : channels),
        totals_(width_ * threads),
        partial_(rows.vector ? width_ * threads : 0) {
    for (int64_t i = 0; i < width_ * threads; ++i) totals_.data()[i] = 0;
    for (int64_t i = 0; rows.vector && i < width_ * threads; ++i) partial_.data()[i] = 0;
  }
  double& total(int64_t channel, int thread) const { return totals_.data()[thread * width_ + channel]; }
  T* partial(int thread) const { return partial_.data() + thread * width_; }
  void flush(int thread) const {
    T* partial = this->partial(thread);
    double* totals = totals_.data() + thread * width_;
    for (int64_t j = 0; j < width_; ++j) totals[j] += partial[j], partial[j] = 0;
  }
  void fold(S* db) const {
    Scratch<double> sums(channels_);
    for (int64_t c = 0; c < channels_; ++c) sums.data()[c] = 0;
    for (int t = 0; t < threads_; ++t) {
      for (int64_t j = 0; j < width_; ++j) {
        sums.data()[rows_.vector ? rows_.channel(j) : j] += totals_.data()[t * width_ + j];
      }
    }
    for (int64_t c = 0; c < channels_; ++c) db[c] = sums.data()[c];
  }

 private:
  const Rows<S>& rows_;
  int64_t channels_;
  int threads_;
  int64_t width_;
  Scratch<double> totals_;
  Scratch<T> partial_;
};

template <Act A, Reference K, typename S>
void grad(const BiasActGradParams& p) {
  using T = Compute<S>;
  const S* dy = static_cast<const S*>(p.dy);
  const S* r = K == Reference::none ? dy : static_cast<const S*>(p.reference);
  const Target<S> dx = target<kLight<A, K>, S>(p.dx, p.numel);
  S* db = static_cast<S*>(p.db);
  const Output<A, T> output = output_read_from<K, A, S>(p);
  const Rows<S> rows(p, db != nullptr || (K == Reference::x && p.bias != nullptr));
  const int threads = threads_for(p.numel, kGrain);
  const ChannelSums<S> sums(rows, p.channels, threads, db != nullptr);
  parts(p.numel, threads, [&](int64_t begin, int64_t end, int thread) {
    int64_t rows_done = 0;
    each_row(begin, end, rows.length, [&](int64_t i0, int64_t i1, int64_t offset) {
      if (rows.vector) {
        const T* bias = rows.laid_out() + offset - i0;
        T* sum = sums.partial(thread) + offset - i0;
        sweep(i0, i1, dx, [&](int64_t i, auto n) {
          const Vec<T> d = load(dy + i, n) * derivatives<K>(output, load(r + i, n), load(bias + i, n)).first;
          dx.put(i, d, n);
          if (db != nullptr) store(sum + i, load(sum + i, n) + d, n);
        });
        if (db != nullptr && ++rows_done % kFlushRows == 0) sums.flush(thread);
        return;
      }
      const Vec<T> bias = splat(rows.scalar(i0));
      // In pieces, so that no float sum grows long.
      for (int64_t j = i0; j < i1; j += kFlushElements) {
        Vec<T> acc{};
        sweep(j, min64(i1, j + kFlushElements), dx, [&](int64_t i, auto n) {
          const Vec<T> d = load(dy + i, n) * derivatives<K>(output, load(r + i, n), bias).first;
          dx.put(i, d, n);
          acc += d;
        });
        if (db != nullptr) sums.total(rows.channel(i0), thread) += sum<T>(acc);
      }
    });
    if (db != nullptr && rows.vector) sums.flush(thread);
  });
  if (db != nullptr) sums.fold(db);
}

template <Act A, Reference K, typename S>
void grad2(const BiasActGrad2Params& p) {
  using T = Compute<S>;
  const S* dy = static_cast<const S*>(p.dy);
  const S* g = static_cast<const S*>(p.g);
  const S* r = K == Reference::none ? g : static_cast<const S*>(p.reference);
  constexpr bool light = kLight<A, K>;
  const Target<S> d_dy = target<light, S>(p.d_dy, p.numel), d_x = target<light, S>(p.d_x, p.numel);
  const Output<A, T> output = output_read_from<K, A, S>(p);
  const Rows<S> rows(p, K == Reference::x && p.bias != nullptr);
  parts(p.numel, threads_for(p.numel, kGrain), [&](int64_t begin, int64_t end, int) {
    each_row(begin, end, rows.length, [&](int64_t i0, int64_t i1, int64_t offset) {
      const T* laid_out = rows.laid_out() + offset - i0;
      const Vec<T> scalar = rows.vector ? Vec<T>{} : splat(rows.scalar(i0));
      sweep(i0, i1, d_dy.data != nullptr ? d_dy : d_x, [&](int64_t i, auto n) {
        const Derivatives<T> s = derivatives<K>(output, load(r + i, n), rows.vector ? load(laid_out + i, n) : scalar);
        const Vec<T> arriving = load(g + i, n);
        if (d_dy.data != nullptr) d_dy.put(i, arriving * s.first, n);
        if (d_x.data != nullptr) d_x.put(i, arriving * load(dy + i, n) * s.second, n);
      });
    });
  });
}

template <typename Params, typename Run>
void with_kind(const Params& p, const Run& run) {
  with_act(p.act, [&]<Act A>() {
    if (p.kind == Reference::none) return run.template operator()<Act::linear, Reference::none>();
    if (p.kind == Reference::x) return run.template operator()<A, Reference::x>();
    if constexpr (A != Act::swish) run.template operator()<A, Reference::y>();
  });
}

}  // namespace

void bias_act_cpu(const BiasActForwardParams& p) {
  if (p.numel == 0) return;
  with_type(p.dtype, [&]<typename S>() { with_act(p.act, [&]<Act A>() { forward<A, S>(p); }); });
}

void bias_act_grad_cpu(const BiasActGradParams& p) {
  with_type(p.dtype, [&]<typename S>() {
    if (p.numel == 0) {
      for (int64_t c = 0; p.db != nullptr && c < p.channels; ++c) static_cast<S*>(p.db)[c] = 0;
      return;
    }
    with_kind(p, [&]<Act A, Reference K>() { grad<A, K, S>(p); });
  });
}

void bias_act_grad2_cpu(const BiasActGrad2Params& p) {
  if (p.numel == 0) return;
  with_type(p.dtype, [&]<typename S>() { with_kind(p, [&]<Act A, Reference K>() { grad2<A, K, S>(p); }); });
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(bias_act_cpu, BiasActForwardParams)
ATU_CPU_ENTRY(bias_act_grad_cpu, BiasActGradParams)
ATU_CPU_ENTRY(bias_act_grad2_cpu, BiasActGrad2Params)
