#include "kernels/modulated_conv2d.h"

#include "bindings/convert.h"

namespace py = pybind11;

namespace {

// Everywhere: size is (n, c, pixels); an address of 0 stands for an absent tensor; stream is -1 for the CPU.

void square_sum(uint64_t w, uint64_t q, uint64_t dq, uint64_t dw, int dtype, int64_t rows, int64_t inner, int64_t taps,
                bool channels_last, int64_t stream) {
  const atu::SquareSumParams p{atu::checked<atu::DType>({"square_sum", "dtype"}, dtype),
                               rows,
                               inner,
                               taps,
                               channels_last,
                               atu::pointer(w),
                               atu::pointer(q),
                               atu::pointer(dq),
                               atu::pointer(dw)};
  if (q) {
    ATU_CALL(square_sum, p, stream);
  } else {
    ATU_CALL(square_sum_grad, p, stream);
  }
}

void read(const char* function, atu::ModulateParams& p, uint64_t x, uint64_t styles, uint64_t out, int dtype,
          const py::tuple& size, bool channels_last, bool out_channels_last) {
  p.dtype = atu::checked<atu::DType>({function, "dtype"}, dtype);
  atu::fill({function, "size"}, size, p.n, p.c, p.pixels);
  p.channels_last = channels_last, p.out_channels_last = out_channels_last;
  p.x = atu::pointer(x), p.styles = atu::pointer(styles), p.out = atu::pointer(out);
}

void modulate(uint64_t x, uint64_t styles, uint64_t out, int dtype, const py::tuple& size, bool channels_last,
              bool out_channels_last, int64_t stream) {
  atu::ModulateParams p;
  read("modulate", p, x, styles, out, dtype, size, channels_last, out_channels_last);
  ATU_CALL(modulate, p, stream);
}

void modulate_grad(uint64_t grad_out, uint64_t x, uint64_t styles, uint64_t grad_x, uint64_t grad_styles, int dtype,
                   const py::tuple& size, bool channels_last, int64_t pixel_block, uint64_t partials, int64_t stream) {
  atu::ModulateGradParams p;
  read("modulate_grad", p, x, styles, 0, dtype, size, channels_last, channels_last);
  p.grad_out = atu::pointer(grad_out);
  p.grad_x = atu::pointer(grad_x);
  p.grad_styles = atu::pointer(grad_styles);
  p.pixel_block = pixel_block;
  p.partials = static_cast<double*>(atu::pointer(partials));
  ATU_CALL(modulate_grad, p, stream);
}

// inputs is (u, d, noise, bias), output is (act, alpha, gain, clamp).
void read(const char* function, atu::EpilogueParams& p, const py::tuple& inputs, const py::tuple& output, int dtype,
          const py::tuple& size, bool channels_last, int64_t noise_stride_n) {
  atu::fill({function, "inputs"}, inputs, p.u, p.d, p.noise, p.bias);
  atu::fill({function, "output"}, output, p.act, p.alpha, p.gain, p.clamp);
  p.dtype = atu::checked<atu::DType>({function, "dtype"}, dtype);
  atu::fill({function, "size"}, size, p.n, p.c, p.pixels);
  p.channels_last = channels_last;
  p.noise_stride_n = noise_stride_n;
}

void epilogue(const py::tuple& inputs, const py::tuple& output, uint64_t y, int dtype, const py::tuple& size,
              bool channels_last, int64_t noise_stride_n, int64_t stream) {
  atu::EpilogueForwardParams p;
  read("epilogue", p, inputs, output, dtype, size, channels_last, noise_stride_n);
  p.y = atu::pointer(y);
  ATU_CALL(epilogue, p, stream);
}

// grads is (du, dd, db, dnoise).
void epilogue_grad(const py::tuple& inputs, const py::tuple& output, uint64_t dy, const py::tuple& grads, int dtype,
                   const py::tuple& size, bool channels_last, int64_t noise_stride_n, int64_t pixel_block,
                   uint64_t partials, int64_t stream) {
  atu::EpilogueGradParams p;
  read("epilogue_grad", p, inputs, output, dtype, size, channels_last, noise_stride_n);
  p.dy = atu::pointer(dy);
  atu::fill({"epilogue_grad", "grads"}, grads, p.du, p.dd, p.db, p.dnoise);
  p.pixel_block = pixel_block;
  p.partials = static_cast<double*>(atu::pointer(partials));
  ATU_CALL(epilogue_grad, p, stream);
}

// incoming is (gu, gd, gb, gn), grads is (d_dy, d_u, d_d, d_b, d_noise).
void epilogue_grad2(const py::tuple& inputs, const py::tuple& output, uint64_t dy, const py::tuple& incoming,
                    const py::tuple& grads, int dtype, const py::tuple& size, bool channels_last,
                    int64_t noise_stride_n, int64_t pixel_block, uint64_t partials, int64_t stream) {
  atu::EpilogueGrad2Params p;
  read("epilogue_grad2", p, inputs, output, dtype, size, channels_last, noise_stride_n);
  p.dy = atu::pointer(dy);
  atu::fill({"epilogue_grad2", "incoming"}, incoming, p.gu, p.gd, p.gb, p.gn);
  atu::fill({"epilogue_grad2", "grads"}, grads, p.d_dy, p.d_u, p.d_d, p.d_b, p.d_noise);
  p.pixel_block = pixel_block;
  p.partials = static_cast<double*>(atu::pointer(partials));
  ATU_CALL(epilogue_grad2, p, stream);
}

}  // namespace

void bind_modulated_conv2d(py::module_& m) {
  m.def("square_sum", &square_sum);
  m.def("modulate", &modulate);
  m.def("modulate_grad", &modulate_grad);
  m.def("epilogue", &epilogue);
  m.def("epilogue_grad", &epilogue_grad);
  m.def("epilogue_grad2", &epilogue_grad2);
}
