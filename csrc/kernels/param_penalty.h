// EWC and squared distance over a whole parameter list, their gradient, and Adam's step with that gradient.
//
//   ewc[t]    = 1/2 sum_i fisher[t][i] (theta[t][i] - anchor[t][i])^2
//   distance[t] = sum_i (theta[t][i] - repel[t][i])^2 + constant[t]
//   total     = ( sum_t ewc[t],  sum_t distance_scale[t] distance[t] )
//   gradient:   grad[t][i] += w_e fisher (theta - anchor) + 2 w_d distance_scale[t] (theta - repel)
//   Adam:     step[t] += 1;  g = grad + the above;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//         theta -= lr / (1 - b1^step) m / (sqrt(v) / sqrt(1 - b2^step) + eps)
//
// Coordinates: t tensor (T of them), i element within a tensor (numel[t], may be 0), c chunk (C of them).
// The elements of theta, grad, anchor, fisher, repel, m and v of one tensor lie in the same dense order, whatever it
// is. A chunk is a run of at most `chunk_size` elements of one tensor; chunks are sorted by tensor, then by begin, and
// those of tensor t are first_chunk[t] .. first_chunk[t + 1]. An empty tensor has none.
//
// Values are accumulated in double: each chunk writes its two partial sums to `partials`, a second step adds the
// partial sums of a tensor in chunk order, then the tensors in order. So they do not depend on the number of threads or
// blocks.
//
// Bound: bytes. With s the element size and n = sum_t numel[t]: value 4 s n (theta, anchor, fisher, repel), gradient
// 6 s n (those, grad read and written), Adam 10 s n (those, grad, m, v read; theta, m, v written). A term that is off
// drops its arrays; only ewc: 3, 5 and 9; only distance: 2, 4 and 8.
#pragma once

#include "common.h"

namespace atu {

struct ParamPenaltyParams {
  DType dtype;
  int64_t num_tensors;  // T
  int64_t num_chunks;   // C
  int64_t chunk_size;

  // Tables of T pointers. A null table turns its term off: ewc needs anchor and fisher, distance needs repel.
  void* const* theta;
  void* const* grad;  // gradient and Adam only
  const void* const* anchor;
  const void* const* fisher;
  const void* const* repel;

  const int64_t* numel;         // [T]
  const int64_t* chunk_tensor;  // [C]
  const int64_t* chunk_begin;   // [C]
  const int64_t* first_chunk;   // [T + 1]

  const double* distance_scale;  // [T]; null: 1
  const double* constant;        // [T]; null: 0
  const double* weights;         // [2]: w_e, w_d; gradient and Adam only

  double* partials;  // [C, 2] scratch; value only
  double* values;    // [2, T]: ewc[t], then distance[t]; value only
  double* total;     // [2]; value only
};

// torch.optim.Adam's update (no amsgrad, no weight decay). The steps lie on the device, so that nothing waits for it.
struct ParamPenaltyAdamParams : ParamPenaltyParams {
  void* const* exp_avg;     // [T]: m
  void* const* exp_avg_sq;  // [T]: v
  float* const* step;       // [T], one float each
  double lr, beta1, beta2, eps;
  double* coefficients;  // [2, T] scratch: lr / (1 - b1^step), sqrt(1 - b2^step)
};

// All pointers, tables included, lie in the memory of the device that the function runs on.
void param_penalty_value_cpu(const ParamPenaltyParams& p);
void param_penalty_grad_cpu(const ParamPenaltyParams& p);
void param_penalty_adam_cpu(const ParamPenaltyAdamParams& p);
void param_penalty_value_cuda(const ParamPenaltyParams& p, void* stream);
void param_penalty_grad_cuda(const ParamPenaltyParams& p, void* stream);
void param_penalty_adam_cuda(const ParamPenaltyAdamParams& p, void* stream);

}  // namespace atu
