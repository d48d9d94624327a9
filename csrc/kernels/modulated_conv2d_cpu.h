// What the CPU passes of modulated_conv2d share: tasks, absent inputs, sums over blocks of pixels. Included by
// modulated_conv2d*_cpu.cpp only.
//
// A pass runs over tasks (sample, pixel block). A task goes over its channels; contiguous images are walked in rows of
// one channel, channels-last ones in rows of one pixel, kTile channels at a time, so that per-channel factors and sums
// stay in the first-level cache. Absent inputs are read from a row of zeros or ones: no branch in a loop.
#pragma once

#include "modulated_conv2d.h"
#include "parallel.h"
#include "simd.h"

namespace atu::ATU_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements a thread, below which waking it costs more than it brings
constexpr int64_t kTile = 256;       // channels

template <typename S>
const S* typed(const void* pointer) {
  return static_cast<const S*>(pointer);
}

template <typename S>
S* typed(void* pointer) {
  return static_cast<S*>(pointer);
}

template <typename S>
constexpr S kZeros[kMaxPixelBlock] = {};

static_assert(kTile <= kMaxPixelBlock);

// `values` from `offset` on, or zeros (at most kMaxPixelBlock are read).
template <typename S>
const S* row_or_zeros(const void* values, int64_t offset) {
  return values ? typed<S>(values) + offset : kZeros<S>;
}

template <typename S>
Compute<S> value_or(const void* values, int64_t i, Compute<S> otherwise) {
  return values ? Compute<S>(typed<S>(values)[i]) : otherwise;
}

// body(n, block, first pixel, pixels) for every sample and block of pixels.
template <typename Body>
void for_blocks(int64_t samples, int64_t channels, int64_t pixels, int64_t pixel_block, const Body& body) {
  const int64_t blocks = ceil_div(pixels, pixel_block);
  parallel_for(samples * blocks, threads_for(samples * channels * pixels, kGrain),
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t block = task % blocks, first = block * pixel_block;
                   body(task / blocks, block, first, min64(pixel_block, pixels - first));
                 }
               });
}

// out[n, c] = sum of partials[n, block, c] in block order. Without blocks: zeros.
template <typename S>
void sum_blocks(const double* partials, void* out, int64_t samples, int64_t channels, int64_t blocks) {
  if (!out) return;
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += partials[(n * blocks + b) * channels + c];
      typed<S>(out)[n * channels + c] = sum;
    }
  }
}

}  // namespace
}  // namespace atu::ATU_ISA
