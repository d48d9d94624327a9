// Shared by every kernel, CPU and CUDA. No torch, no Python.
//
// Convention of the kernels: NAME.h is the contract (math, glossary of shapes, bound), a plain struct NAMEParams of raw
// pointers, int64 sizes and strides (in elements), and the two functions
//     void NAME_cpu(const NAMEParams&);
//     void NAME_cuda(const NAMEParams&, void* stream);
// Callers have checked every argument. The CPU functions never throw; the CUDA functions throw std::runtime_error when
// a launch fails.
//
// Functions here are `static inline` on purpose: the CPU sources are compiled once for each instruction set, and an
// external inline function would be one symbol for all of them.
#pragma once

#include <cstdint>

namespace atu {

enum class DType : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

static inline constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
// For any sign of a, b > 0.
static inline constexpr int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b < 0);
}
static inline constexpr int64_t min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline constexpr int64_t max64(int64_t a, int64_t b) {
  return a > b ? a : b;
}

}  // namespace atu
