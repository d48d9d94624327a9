// Threads of the CPU kernels. Included by *_cpu.cpp only (it belongs to one instruction set's namespace).
#pragma once

#include <omp.h>

#include "common.h"

namespace atu::ATU_ISA {

// As many threads as torch.set_num_threads allows (its OpenMP runtime is ours), but each with at least `grain` units of
// `work`: waking a thread costs a few microseconds. One inside another parallel region.
static inline int threads_for(int64_t work, int64_t grain) {
  if (omp_in_parallel()) return 1;
  return int(max64(1, min64(omp_get_max_threads(), work / max64(grain, 1))));
}

// body(begin, end, thread) over an even static split of [0, count) into `threads` parts. Thread t of the split is the
// same part every time, so per-thread partial sums are deterministic for a given number of threads.
template <typename Body>
static inline void parallel_for(int64_t count, int threads, const Body& body) {
  if (threads <= 1) {
    if (count > 0) body(int64_t{0}, count, 0);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    // Fewer threads than asked for may come; the split stays the one asked for.
    for (int t = omp_get_thread_num(); t < threads; t += omp_get_num_threads()) {
      const int64_t begin = count * t / threads, end = count * (t + 1) / threads;
      if (begin < end) body(begin, end, t);
    }
  }
}

}  // namespace atu::ATU_ISA
