#include "cpu_isa.h"
#include "parallel.h"
#include "param_penalty.h"
#include "simd.h"

#include <cmath>

namespace atu::ATU_ISA {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread, below which waking it costs more than it brings

struct Chunk {
  int64_t tensor, begin, size;
};

Chunk chunk_at(const ParamPenaltyParams& p, int64_t c) {
  const int64_t t = p.chunk_tensor[c], begin = p.chunk_begin[c];
  return {t, begin, min64(p.chunk_size, p.numel[t] - begin)};
}

// Start of the chunk in the tensor that `table` has for it; null where the table is.
template <typename T, typename Pointer>
auto* at(Pointer const* table, const Chunk& chunk) {
  using Element = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const T, T>;
  return table ? static_cast<Element*>(table[chunk.tensor]) + chunk.begin : nullptr;
}

template <typename Body>
void for_chunks(const ParamPenaltyParams& p, const Body& body) {
  int64_t elements = 0;
  for (int64_t t = 0; t < p.num_tensors; ++t) elements += p.numel[t];
  parallel_for(p.num_chunks, threads_for(elements, kGrain), [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; ++c) body(c, chunk_at(p, c));
  });
}

template <typename S, bool kEwc, bool kDistance>
void chunk_value(const ParamPenaltyParams& p, const Chunk& chunk, double* partial) {
  const S* theta = at<S>(p.theta, chunk);
  const S* anchor = at<S>(p.anchor, chunk);
  const S* fisher = at<S>(p.fisher, chunk);
  const S* repel = at<S>(p.repel, chunk);
  double ewc = 0, distance = 0;
#pragma omp simd reduction(+ : ewc, distance)
  for (int64_t i = 0; i < chunk.size; ++i) {
    if constexpr (kEwc) {
      const double e = double(theta[i]) - double(anchor[i]);
      ewc += double(fisher[i]) * e * e;
    }
    if constexpr (kDistance) {
      const double e = double(theta[i]) - double(repel[i]);
      distance += e * e;
    }
  }
  partial[0] = 0.5 * ewc;
  partial[1] = distance;
}

// The second step of the sum: chunks of a tensor in order, then the tensors in order.
void sum_partials(const ParamPenaltyParams& p) {
  p.total[0] = p.total[1] = 0;
  for (int64_t t = 0; t < p.num_tensors; ++t) {
    double ewc = 0, distance = 0;
    for (int64_t c = p.first_chunk[t]; c < p.first_chunk[t + 1]; ++c) {
      ewc += p.partials[2 * c];
      distance += p.partials[2 * c + 1];
    }
    if (p.constant) distance += p.constant[t];
    p.values[t] = ewc;
    p.values[p.num_tensors + t] = distance;
    p.total[0] += ewc;
    p.total[1] += (p.distance_scale ? p.distance_scale[t] : 1.0) * distance;
  }
}

// The factors of (theta - anchor) fisher and of (theta - repel) in the gradient of one tensor.
template <typename T>
struct Factors {
  T ewc, distance;
  Factors(const ParamPenaltyParams& p, int64_t t)
      : ewc(T(p.weights[0])), distance(T(2 * p.weights[1] * (p.distance_scale ? p.distance_scale[t] : 1.0))) {}
};

template <bool kEwc, bool kDistance, typename S, typename T>
T penalty_gradient(const Factors<T>& w, T theta, const S* anchor, const S* fisher, const S* repel, int64_t i) {
  T g = 0;
  if constexpr (kEwc) g += w.ewc * T(fisher[i]) * (theta - T(anchor[i]));
  if constexpr (kDistance) g += w.distance * (theta - T(repel[i]));
  return g;
}

template <typename S, bool kEwc, bool kDistance>
void chunk_grad(const ParamPenaltyParams& p, const Chunk& chunk) {
  using T = Compute<S>;
  const Factors<T> w(p, chunk.tensor);
  const S* theta = at<S>(p.theta, chunk);
  const S* anchor = at<S>(p.anchor, chunk);
  const S* fisher = at<S>(p.fisher, chunk);
  const S* repel = at<S>(p.repel, chunk);
  S* grad = at<S>(p.grad, chunk);
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) {
    grad[i] = T(grad[i]) + penalty_gradient<kEwc, kDistance>(w, T(theta[i]), anchor, fisher, repel, i);
  }
}

template <typename S, bool kEwc, bool kDistance>
void chunk_adam(const ParamPenaltyAdamParams& p, const Chunk& chunk) {
  using T = Compute<S>;
  const Factors<T> w(p, chunk.tensor);
  const S* anchor = at<S>(p.anchor, chunk);
  const S* fisher = at<S>(p.fisher, chunk);
  const S* repel = at<S>(p.repel, chunk);
  const S* grad = at<S>(p.grad, chunk);
  S* theta = at<S>(p.theta, chunk);
  S* m = at<S>(p.exp_avg, chunk);
  S* v = at<S>(p.exp_avg_sq, chunk);
  const T beta1 = T(p.beta1), rest1 = T(1 - p.beta1), beta2 = T(p.beta2), rest2 = T(1 - p.beta2);
  const T step_size = T(p.coefficients[chunk.tensor]), correction = T(p.coefficients[p.num_tensors + chunk.tensor]);
  const T eps = T(p.eps);
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) {
    const T g = T(grad[i]) + penalty_gradient<kEwc, kDistance>(w, T(theta[i]), anchor, fisher, repel, i);
    m[i] = beta1 * T(m[i]) + rest1 * g;
    v[i] = beta2 * T(v[i]) + rest2 * g * g;
    theta[i] = T(theta[i]) - step_size * (T(m[i]) / (std::sqrt(T(v[i])) / correction + eps));
  }
}

// Calls body.operator()<S, kEwc, kDistance>() for the dtype and the terms that are on.
template <typename Body>
void dispatch(const ParamPenaltyParams& p, const Body& body) {
  const bool ewc = p.anchor && p.fisher, distance = p.repel;
  with_type(p.dtype, [&]<typename S>() {
    if (ewc && distance) return body.template operator()<S, true, true>();
    if (ewc) return body.template operator()<S, true, false>();
    if (distance) return body.template operator()<S, false, true>();
    body.template operator()<S, false, false>();
  });
}

}  // namespace

void param_penalty_value_cpu(const ParamPenaltyParams& p) {
  dispatch(p, [&]<typename S, bool kEwc, bool kDistance>() {
    for_chunks(p,
               [&](int64_t c, const Chunk& chunk) { chunk_value<S, kEwc, kDistance>(p, chunk, p.partials + 2 * c); });
  });
  sum_partials(p);
}

void param_penalty_grad_cpu(const ParamPenaltyParams& p) {
  dispatch(p, [&]<typename S, bool kEwc, bool kDistance>() {
    for_chunks(p, [&](int64_t, const Chunk& chunk) { chunk_grad<S, kEwc, kDistance>(p, chunk); });
  });
}

void param_penalty_adam_cpu(const ParamPenaltyAdamParams& p) {
  for (int64_t t = 0; t < p.num_tensors; ++t) {
    const double step = *p.step[t] += 1;
    p.coefficients[t] = p.lr / (1 - std::pow(p.beta1, step));
    p.coefficients[p.num_tensors + t] = std::sqrt(1 - std::pow(p.beta2, step));
  }
  dispatch(p, [&]<typename S, bool kEwc, bool kDistance>() {
    for_chunks(p, [&](int64_t, const Chunk& chunk) { chunk_adam<S, kEwc, kDistance>(p, chunk); });
  });
}

}  // namespace atu::ATU_ISA

ATU_CPU_ENTRY(param_penalty_value_cpu, ParamPenaltyParams)
ATU_CPU_ENTRY(param_penalty_grad_cpu, ParamPenaltyParams)
ATU_CPU_ENTRY(param_penalty_adam_cpu, ParamPenaltyAdamParams)
