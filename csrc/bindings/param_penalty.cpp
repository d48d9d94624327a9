#include "kernels/param_penalty.h"

#include "bindings/convert.h"

namespace py = pybind11;

namespace {

template <typename T>
T typed(uint64_t address) {
  return static_cast<T>(atu::pointer(address));
}

// layout is (numel, chunk_tensor, chunk_begin, first_chunk, tensors, chunks, chunk_size): what depends on the shapes
// alone, the first four as addresses. tables is (theta, grad, anchor, fisher, repel): addresses of tables of pointers,
// 0 for an absent one.
void read(const char* function, atu::ParamPenaltyParams& p, int dtype, const py::tuple& layout, const py::tuple& tables,
          uint64_t scale) {
  p.dtype = atu::checked<atu::DType>({function, "dtype"}, dtype);
  atu::fill({function, "layout"}, layout, p.numel, p.chunk_tensor, p.chunk_begin, p.first_chunk, p.num_tensors,
            p.num_chunks, p.chunk_size);
  atu::fill({function, "tables"}, tables, p.theta, p.grad, p.anchor, p.fisher, p.repel);
  p.distance_scale = typed<const double*>(scale);
  p.constant = p.weights = nullptr;
  p.partials = p.values = p.total = nullptr;
}

// stream is -1 for the CPU.
void value(int dtype, const py::tuple& layout, const py::tuple& tables, uint64_t scale, uint64_t constant,
           uint64_t partials, uint64_t values, uint64_t total, int64_t stream) {
  atu::ParamPenaltyParams p;
  read("param_penalty_value", p, dtype, layout, tables, scale);
  p.constant = typed<const double*>(constant);
  p.partials = typed<double*>(partials);
  p.values = typed<double*>(values);
  p.total = typed<double*>(total);
  ATU_CALL(param_penalty_value, p, stream);
}

void grad(int dtype, const py::tuple& layout, const py::tuple& tables, uint64_t scale, uint64_t weights,
          int64_t stream) {
  atu::ParamPenaltyParams p;
  read("param_penalty_grad", p, dtype, layout, tables, scale);
  p.weights = typed<const double*>(weights);
  ATU_CALL(param_penalty_grad, p, stream);
}

// state is (exp_avg, exp_avg_sq, step), tables of pointers; coefficients is scratch.
void adam(int dtype, const py::tuple& layout, const py::tuple& tables, uint64_t scale, uint64_t weights,
          const py::tuple& state, uint64_t coefficients, double lr, double beta1, double beta2, double eps,
          int64_t stream) {
  atu::ParamPenaltyAdamParams p;
  read("param_penalty_adam", p, dtype, layout, tables, scale);
  p.weights = typed<const double*>(weights);
  atu::fill({"param_penalty_adam", "state"}, state, p.exp_avg, p.exp_avg_sq, p.step);
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
