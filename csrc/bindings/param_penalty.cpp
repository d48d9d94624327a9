#include "kernels/param_penalty.h"

#include "bindings/convert.h"

namespace py = pybind11;

namespace {

// Tables of pointers, as addresses of int64 arrays; 0 for an absent one.
struct Tables {
  uint64_t theta, grad, anchor, fisher, repel;
};

// Addresses of what depends on the shapes alone.
struct Layout {
  uint64_t numel, chunk_tensor, chunk_begin, first_chunk;
  int64_t tensors, chunks, chunk_size;
};

Tables tables_of(const py::tuple& t) {
  const auto at = [&](int i) { return uint64_t(atu::item(t, i)); };
  return {at(0), at(1), at(2), at(3), at(4)};
}

Layout layout_of(const py::tuple& t) {
  const auto at = [&](int i) { return atu::item(t, i); };
  return {uint64_t(at(0)), uint64_t(at(1)), uint64_t(at(2)), uint64_t(at(3)), at(4), at(5), at(6)};
}

template <typename T>
T typed(uint64_t address) {
  return static_cast<T>(atu::pointer(address));
}

void fill(atu::ParamPenaltyParams& p, int dtype, const Layout& layout, const Tables& tables, uint64_t scale) {
  p.dtype = atu::DType(dtype);
  p.num_tensors = layout.tensors, p.num_chunks = layout.chunks, p.chunk_size = layout.chunk_size;
  p.numel = typed<const int64_t*>(layout.numel);
  p.chunk_tensor = typed<const int64_t*>(layout.chunk_tensor);
  p.chunk_begin = typed<const int64_t*>(layout.chunk_begin);
  p.first_chunk = typed<const int64_t*>(layout.first_chunk);
  p.theta = typed<void* const*>(tables.theta);
  p.grad = typed<void* const*>(tables.grad);
  p.anchor = typed<const void* const*>(tables.anchor);
  p.fisher = typed<const void* const*>(tables.fisher);
  p.repel = typed<const void* const*>(tables.repel);
  p.distance_scale = typed<const double*>(scale);
  p.constant = p.weights = nullptr;
  p.partials = p.values = p.total = nullptr;
}

// stream is -1 for the CPU.
void value(int dtype, const py::tuple& layout, const py::tuple& tables, uint64_t scale, uint64_t constant,
           uint64_t partials, uint64_t values, uint64_t total, int64_t stream) {
  atu::ParamPenaltyParams p;
  fill(p, dtype, layout_of(layout), tables_of(tables), scale);
  p.constant = typed<const double*>(constant);
  p.partials = typed<double*>(partials);
  p.values = typed<double*>(values);
  p.total = typed<double*>(total);
  ATU_CALL(param_penalty_value, p, stream);
}

void grad(int dtype, const py::tuple& layout, const py::tuple& tables, uint64_t scale, uint64_t weights,
          int64_t stream) {
  atu::ParamPenaltyParams p;
  fill(p, dtype, layout_of(layout), tables_of(tables), scale);
  p.weights = typed<const double*>(weights);
  ATU_CALL(param_penalty_grad, p, stream);
}

// state is (exp_avg, exp_avg_sq, step), tables of pointers; coefficients is scratch.
void adam(int dtype, const py::tuple& layout, const py::tuple& tables, uint64_t scale, uint64_t weights,
          const py::tuple& state, uint64_t coefficients, double lr, double beta1, double beta2, double eps,
          int64_t stream) {
  const auto table = [&](int i) { return atu::pointer(uint64_t(atu::item(state, i))); };
  atu::ParamPenaltyAdamParams p;
  fill(p, dtype, layout_of(layout), tables_of(tables), scale);
  p.weights = typed<const double*>(weights);
  p.exp_avg = static_cast<void* const*>(table(0));
  p.exp_avg_sq = static_cast<void* const*>(table(1));
  p.step = static_cast<float* const*>(table(2));
  p.lr = lr, p.beta1 = beta1, p.beta2 = beta2, p.eps = eps;
  p.coefficients = typed<double*>(coefficients);
  ATU_CALL(param_penalty_adam, p, stream);
}

}  // namespace

void bind_param_penalty(py::module_& m) {
  m.def("param_penalty_value", &value);
  m.def("param_penalty_grad", &grad);
  m.def("param_penalty_adam", &adam);
}
