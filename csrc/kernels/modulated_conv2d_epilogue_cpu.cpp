// The layer's output: y = clamp(gain act(d u + noise + b)), its gradient and its second gradient.
#include "modulated_conv2d_cpu.h"

#include "activation_cpu.h"
#include "cpu_isa.h"

namespace atu::ATU_ISA {
namespace {

// One value a channel of a tile, local; zeros from the tile's end to that of the last vector, so that whole vectors can
// be read and what they compute there is zero.
template <typename S>
struct Tile {
  using T = Compute<S>;
  T values[kTile];
  // `size` values from `offset` on, or that many of `otherwise` where there are none.
  Tile(const void* source, int64_t offset, int64_t size, T otherwise) {
    for (int64_t c = 0; c < size; ++c) values[c] = value_or<S>(source, offset + c, otherwise);
    for (int64_t c = size; c % kLanes<T> != 0; ++c) values[c] = 0;
  }
  Vec<T> operator[](int64_t c) const { return load(values + c); }
};

// A local row of sums.
template <typename T, int64_t Size>
struct Sums {
  T values[Size] = {};
  void add(int64_t i, Vec<T> v) { store(values + i, load(values + i) + v); }
};

template <Act A, typename S>
void forward_planes(const EpilogueForwardParams& p) {
  using T = Compute<S>;
  parallel_for(p.n * p.c, threads_for(p.n * p.c * p.pixels, kGrain), [&](int64_t begin, int64_t end, int) {
    const Output<A, T> output(p);
    for (int64_t row = begin; row < end; ++row) {
      const T d = value_or<S>(p.d, row, 1), b = value_or<S>(p.bias, row % p.c, 0);
      for (int64_t first = 0; first < p.pixels; first += kMaxPixelBlock) {
        const S* noise = row_or_zeros<S>(p.noise, row / p.c * p.noise_stride_n + first);
        const S* u = typed<S>(p.u) + row * p.pixels + first;
        S* y = typed<S>(p.y) + row * p.pixels + first;
        for_vectors<T>(0, min64(kMaxPixelBlock, p.pixels - first), [&](int64_t i, auto n) {
          store(y + i, output(d * load(u + i, n) + load(noise + i, n) + b), n);
        });
      }
    }
  });
}

template <Act A, typename S>
void forward_pixels(const EpilogueForwardParams& p) {
  using T = Compute<S>;
  for_blocks(p.n, p.c, p.pixels, 64, [&](int64_t n, int64_t, int64_t first, int64_t size) {
    const Output<A, T> output(p);
    const S* noise = row_or_zeros<S>(p.noise, n * p.noise_stride_n + first);
    for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
      const int64_t tile = min64(kTile, p.c - c0);
      const Tile<S> d(p.d, n * p.c + c0, tile, 1), b(p.bias, c0, tile, 0);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t offset = (n * p.pixels + first + i) * p.c + c0;
        const S* u = typed<S>(p.u) + offset;
        S* y = typed<S>(p.y) + offset;
        const T z = noise[i];
        for_vectors<T>(0, tile, [&](int64_t c, auto n) { store(y + c, output(d[c] * load(u + c, n) + z + b[c]), n); });
      }
    }
  });
}

// Where one (sample, block) task of a gradient puts its sums over pixels.
struct Partials {
  double* d;
  double* b;
  template <typename Params>
  Partials(const Params& p, int64_t n, int64_t block, int64_t blocks)
      : d(p.partials ? p.partials + (n * blocks + block) * p.c : nullptr), b(d ? d + p.n * blocks * p.c : nullptr) {}
  void put(int64_t c, double sum_d, double sum_b) const {
    if (d) d[c] = sum_d, b[c] = sum_b;
  }
};

template <typename S>
void store_row(void* out, int64_t offset, const Compute<S>* sums, int64_t size) {
  if (!out) return;
  for_vectors<S>(0, size, [&](int64_t i, auto n) { store(typed<S>(out) + offset + i, load(sums + i), n); });
}

template <Act A, typename S>
void grad_planes(const EpilogueGradParams& p, int64_t n, int64_t first, int64_t size, const Partials& partials) {
  using T = Compute<S>;
  const Output<A, T> output(p);
  const S* noise = row_or_zeros<S>(p.noise, n * p.noise_stride_n + first);
  Sums<T, kMaxPixelBlock> over_channels;
  for (int64_t c = 0; c < p.c; ++c) {
    const int64_t row = n * p.c + c, offset = row * p.pixels + first;
    const T d = value_or<S>(p.d, row, 1), b = value_or<S>(p.bias, c, 0);
    const S* u = typed<S>(p.u) + offset;
    const S* dy = typed<S>(p.dy) + offset;
    S* du = typed<S>(p.du) + offset;
    Vec<T> sum_d{}, sum_b{};
    for_vectors<T>(0, size, [&](int64_t i, auto m) {
      const Vec<T> ui = load(u + i, m);
      const Vec<T> dv = load(dy + i, m) * output.derivatives(d * ui + load(noise + i, m) + b).first;
      sum_d += dv * ui;
      sum_b += dv;
      over_channels.add(i, dv);
      store(du + i, dv * d, m);
    });
    partials.put(c, sum<T>(sum_d), sum<T>(sum_b));
  }
  store_row<S>(p.dnoise, n * p.pixels + first, over_channels.values, size);
}

template <Act A, typename S>
void grad_pixels(const EpilogueGradParams& p, int64_t n, int64_t first, int64_t size, const Partials& partials) {
  using T = Compute<S>;
  const Output<A, T> output(p);
  const S* noise = row_or_zeros<S>(p.noise, n * p.noise_stride_n + first);
  T over_channels[kMaxPixelBlock] = {};
  for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
    const int64_t tile = min64(kTile, p.c - c0);
    const Tile<S> d(p.d, n * p.c + c0, tile, 1), b(p.bias, c0, tile, 0);
    Sums<T, kTile> sum_d, sum_b;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t offset = (n * p.pixels + first + i) * p.c + c0;
      const S* u = typed<S>(p.u) + offset;
      const S* dy = typed<S>(p.dy) + offset;
      S* du = typed<S>(p.du) + offset;
      const T z = noise[i];
      Vec<T> total{};
      for_vectors<T>(0, tile, [&](int64_t c, auto m) {
        const Vec<T> uc = load(u + c, m);
        const Vec<T> dv = load(dy + c, m) * output.derivatives(d[c] * uc + z + b[c]).first;
        sum_d.add(c, dv * uc);
        sum_b.add(c, dv);
        total += dv;
        store(du + c, dv * d[c], m);
      });
      if (p.dnoise) over_channels[i] += sum<T>(total);
    }
    for (int64_t c = 0; c < tile; ++c) partials.put(c0 + c, sum_d.values[c], sum_b.values[c]);
  }
  store_row<S>(p.dnoise, n * p.pixels + first, over_channels, size);
}

// The second gradient at a vector of elements, in the names of modulated_conv2d.h; v = d u + noise + b, and
// shift = gn + gb.
template <typename T>
struct Grad2 {
  Vec<T> d_dy, d_u, term_of_d_d, term_of_d_b;
};

template <Act A, typename T>
inline Grad2<T> grad2_at(const Output<A, T>& output, Vec<T> v, Vec<T> u, Vec<T> dy, Vec<T> d, Vec<T> gu, Vec<T> gd,
                         Vec<T> shift) {
  const Derivatives<T> f = output.derivatives(v);
  const Vec<T> t = gu * d + gd * u + shift, dv = dy * f.first, e = kCurved<A> ? dy * f.second * t : Vec<T>{};
  return {f.first * t, dv * gd + e * d, dv * gu + e * u, e};
}

template <Act A, typename S>
void grad2_planes(const EpilogueGrad2Params& p, int64_t n, int64_t first, int64_t size, const Partials& partials) {
  using T = Compute<S>;
  const Output<A, T> output(p);
  const S* noise = row_or_zeros<S>(p.noise, n * p.noise_stride_n + first);
  const S* gn = row_or_zeros<S>(p.gn, n * p.pixels + first);
  Sums<T, kMaxPixelBlock> over_channels;
  for (int64_t c = 0; c < p.c; ++c) {
    const int64_t row = n * p.c + c, offset = row * p.pixels + first;
    const Vec<T> d = splat(value_or<S>(p.d, row, 1)), b = splat(value_or<S>(p.bias, c, 0));
    const Vec<T> gd = splat(value_or<S>(p.gd, row, 0)), gb = splat(value_or<S>(p.gb, row, 0));
    const S* u = typed<S>(p.u) + offset;
    const S* dy = typed<S>(p.dy) + offset;
    const S* gu = row_or_zeros<S>(p.gu, offset);
    S* d_dy = typed<S>(p.d_dy) + offset;
    S* d_u = typed<S>(p.d_u) + offset;
    Vec<T> sum_d{}, sum_b{};
    for_vectors<T>(0, size, [&](int64_t i, auto m) {
      const Vec<T> ui = load(u + i, m), v = d * ui + load(noise + i, m) + b;
      const auto at = grad2_at(output, v, ui, load(dy + i, m), d, load(gu + i, m), gd, load(gn + i, m) + gb);
      store(d_dy + i, at.d_dy, m);
      store(d_u + i, at.d_u, m);
      sum_d += at.term_of_d_d;
      sum_b += at.term_of_d_b;
      over_channels.add(i, at.term_of_d_b);
    });
    partials.put(c, sum<T>(sum_d), sum<T>(sum_b));
  }
  store_row<S>(p.d_noise, n * p.pixels + first, over_channels.values, size);
}

template <Act A, typename S>
void grad2_pixels(const EpilogueGrad2Params& p, int64_t n, int64_t first, int64_t size, const Partials& partials) {
  using T = Compute<S>;
  const Output<A, T> output(p);
  const S* noise = row_or_zeros<S>(p.noise, n * p.noise_stride_n + first);
  const S* gn = row_or_zeros<S>(p.gn, n * p.pixels + first);
  T over_channels[kMaxPixelBlock] = {};
  for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
    const int64_t tile = min64(kTile, p.c - c0), nc = n * p.c + c0;
    const Tile<S> d(p.d, nc, tile, 1), b(p.bias, c0, tile, 0), gd(p.gd, nc, tile, 0), gb(p.gb, nc, tile, 0);
    Sums<T, kTile> sum_d, sum_b;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t offset = (n * p.pixels + first + i) * p.c + c0;
      const S* u = typed<S>(p.u) + offset;
      const S* dy = typed<S>(p.dy) + offset;
      const S* gu = row_or_zeros<S>(p.gu, offset);
      S* d_dy = typed<S>(p.d_dy) + offset;
      S* d_u = typed<S>(p.d_u) + offset;
      const T z = noise[i], gz = gn[i];
      Vec<T> total{};
      for_vectors<T>(0, tile, [&](int64_t c, auto m) {
        const Vec<T> uc = load(u + c, m), v = d[c] * uc + z + b[c];
        const auto at = grad2_at(output, v, uc, load(dy + c, m), d[c], load(gu + c, m), gd[c], gz + gb[c]);
        store(d_dy + c, at.d_dy, m);
        store(d_u + c, at.d_u, m);
        sum_d.add(c, at.term_of_d_d);
        sum_b.add(c, at.term_of_d_b);
        total += at.term_of_d_b;
      });
      if (p.d_noise) over_channels[i] += sum<T>(total);
    }
    for (int64_t c = 0; c < tile; ++c) partials.put(c0 + c, sum_d.values[c], sum_b.values[c]);
  }
  store_row<S>(p.d_noise, n * p.pixels + first, over_channels, size);
}

// Runs planes or pixels over all tasks, then adds the partial sums.
template <typename S, typename Params>
void reduce_pass(const Params& p, void (*task)(const Params&, int64_t, int64_t, int64_t, const Partials&), void* sum_d,
                 void* sum_b) {
  const int64_t blocks = ceil_div(p.pixels, p.pixel_block);
  for_blocks(p.n, p.c, p.pixels, p.pixel_block, [&](int64_t n, int64_t block, int64_t first, int64_t size) {
    task(p, n, first, size, Partials(p, n, block, blocks));
  });
  sum_blocks<S>(p.partials, sum_d, p.n, p.c, blocks);
  sum_blocks<S>(p.partials + p.n * blocks * p.c, sum_b, p.n, p.c, blocks);
}

// body.operator()<A, S>() for the activation and the dtype.
template <typename Body>
void dispatch(const EpilogueParams& p, const Body& body) {
  with_type(p.dtype, [&]<typename S>() { with_act(p.act, [&]<Act A>() { body.template operator()<A, S>(); }); });
}

}  // namespace

void epilogue_cpu(const EpilogueForwardParams& p) {
  dispatch(p, [&]<Act A, typename S>() { p.channels_last ? forward_pixels<A, S>(p) : forward_planes<A, S>(p); });
}

void epilogue_grad_cpu(const EpilogueGradParams& p) {
  dispatch(p, [&]<Act A, typename S>() {
    reduce_pass<S>(p, p.channels_last ? grad_pixels<A, S> : grad_planes<A, S>, p.dd, p.db);
  });
}

void epilogue_grad2_cpu(const EpilogueGrad2Params& p) {
  dispatch(p, [&]<Act A, typename S>() {
    reduce_pass<S>(p, p.channels_last ? grad2_pixels<A, S> : grad2_planes<A, S>, p.d_d, p.d_b);
  });
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(epilogue_cpu, EpilogueForwardParams)
ATU_CPU_ENTRY(epilogue_grad_cpu, EpilogueGradParams)
ATU_CPU_ENTRY(epilogue_grad2_cpu, EpilogueGrad2Params)
