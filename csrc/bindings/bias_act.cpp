#include "kernels/bias_act.h"

#include "bindings/convert.h"

namespace py = pybind11;

namespace {

void read(const char* function, atu::BiasActParams& p, int dtype, int act, double alpha, double gain, double clamp,
          int64_t numel, int64_t inner, int64_t channels, uint64_t bias) {
  p.dtype = atu::checked<atu::DType>({function, "dtype"}, dtype);
  p.act = atu::checked<atu::Act>({function, "act"}, act);
  p.alpha = alpha, p.gain = gain, p.clamp = clamp;
  p.numel = numel, p.inner = inner, p.channels = channels;
  p.bias = atu::pointer(bias);
}

void bias_act(uint64_t x, uint64_t bias, uint64_t y, int dtype, int act, double alpha, double gain, double clamp,
              int64_t numel, int64_t inner, int64_t channels, int64_t stream) {
  atu::BiasActForwardParams p;
  read("bias_act", p, dtype, act, alpha, gain, clamp, numel, inner, channels, bias);
  p.x = atu::pointer(x);
  p.y = atu::pointer(y);
  ATU_CALL(bias_act, p, stream);
}

void bias_act_grad(uint64_t dy, uint64_t reference, int kind, uint64_t bias, uint64_t dx, uint64_t db, int dtype,
                   int act, double alpha, double gain, double clamp, int64_t numel, int64_t inner, int64_t channels,
                   int64_t stream) {
  atu::BiasActGradParams p;
  read("bias_act_grad", p, dtype, act, alpha, gain, clamp, numel, inner, channels, bias);
  p.kind = atu::checked<atu::Reference>({"bias_act_grad", "kind"}, kind);
  p.reference = atu::pointer(reference);
  p.dy = atu::pointer(dy);
  p.dx = atu::pointer(dx);
  p.db = atu::pointer(db);
  ATU_CALL(bias_act_grad, p, stream);
}

void bias_act_grad2(uint64_t g, uint64_t dy, uint64_t reference, int kind, uint64_t bias, uint64_t d_dy, uint64_t d_x,
                    int dtype, int act, double alpha, double gain, double clamp, int64_t numel, int64_t inner,
                    int64_t channels, int64_t stream) {
  atu::BiasActGrad2Params p;
  read("bias_act_grad2", p, dtype, act, alpha, gain, clamp, numel, inner, channels, bias);
  p.kind = atu::checked<atu::Reference>({"bias_act_grad2", "kind"}, kind);
  p.reference = atu::pointer(reference);
  p.g = atu::pointer(g);
  p.dy = atu::pointer(dy);
  p.d_dy = atu::pointer(d_dy);
  p.d_x = atu::pointer(d_x);
  ATU_CALL(bias_act_grad2, p, stream);
}

}  // namespace

void bind_bias_act(py::module_& m) {
  m.def("bias_act", &bias_act);
  m.def("bias_act_grad", &bias_act_grad);
  m.def("bias_act_grad2", &bias_act_grad2);
}
