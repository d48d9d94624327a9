#include "kernels/modulated_conv2d.h"

#include "bindings/convert.h"

namespace py = pybind11;

namespace {

// Everywhere: size is (n, c, pixels); an address of 0 stands for an absent tensor; stream is -1 for the CPU.

void square_sum(uint64_t w, uint64_t q, uint64_t dq, uint64_t dw, int dtype, int64_t rows, int64_t inner, int64_t taps,
                bool channels_last, int64_t stream) {
  const atu::SquareSumParams p{
      atu::DType(dtype), rows, inner, taps, channels_last, atu::pointer(w), atu::pointer(q), atu::pointer(dq),
      atu::pointer(dw)};
  if (q) {
    ATU_CALL(square_sum, p, stream);
  } else {
    ATU_CALL(square_sum_grad, p, stream);
  }
}

void fill(atu::ModulateParams& p, uint64_t x, uint64_t styles, uint64_t out, int dtype, const py::tuple& size,
          bool channels_last, bool out_channels_last) {
  p.dtype = atu::DType(dtype);
  p.n = atu::item(size, 0), p.c = atu::item(size, 1), p.pixels = atu::item(size, 2);
  p.channels_last = channels_last, p.out_channels_last = out_channels_last;
  p.x = atu::pointer(x), p.styles = atu::pointer(styles), p.out = atu::pointer(out);
}

void modulate(uint64_t x, uint64_t styles, uint64_t out, int dtype, const py::tuple& size, bool channels_last,
              bool out_channels_last, int64_t stream) {
  atu::ModulateParams p;
  fill(p, x, styles, out, dtype, size, channels_last, out_channels_last);
  ATU_CALL(modulate, p, stream);
}

void modulate_grad(uint64_t grad_out, uint64_t x, uint64_t styles, uint64_t grad_x, uint64_t grad_styles, int dtype,
                   const py::tuple& size, bool channels_last, int64_t pixel_block, uint64_t partials, int64_t stream) {
  atu::ModulateGradParams p;
  fill(p, x, styles, 0, dtype, size, channels_last, channels_last);
  p.grad_out = atu::pointer(grad_out);
  p.grad_x = atu::pointer(grad_x);
  p.grad_styles = atu::pointer(grad_styles);
  p.pixel_block = pixel_block;
  p.partials = static_cast<double*>(atu::pointer(partials));
  ATU_CALL(modulate_grad, p, stream);
}

// inputs is (u, d, noise, bias), output is (act, alpha, gain, clamp).
void fill(atu::EpilogueParams& p, const py::tuple& inputs, const py::tuple& output, int dtype, const py::tuple& size,
          bool channels_last, int64_t noise_stride_n) {
  const auto input = [&](int i) { return atu::pointer(uint64_t(atu::item(inputs, i))); };
  p.u = input(0), p.d = input(1), p.noise = input(2), p.bias = input(3);
  p.act = atu::Act(atu::item(output, 0));
  p.alpha = output[1].cast<double>(), p.gain = output[2].cast<double>(), p.clamp = output[3].cast<double>();
  p.dtype = atu::DType(dtype);
  p.n = atu::item(size, 0), p.c = atu::item(size, 1), p.pixels = atu::item(size, 2);
  p.channels_last = channels_last;
  p.noise_stride_n = noise_stride_n;
}

void epilogue(const py::tuple& inputs, const py::tuple& output, uint64_t y, int dtype, const py::tuple& size,
              bool channels_last, int64_t noise_stride_n, int64_t stream) {
  atu::EpilogueForwardParams p;
  fill(p, inputs, output, dtype, size, channels_last, noise_stride_n);
  p.y = atu::pointer(y);
  ATU_CALL(epilogue, p, stream);
}

// grads is (du, dd, db, dnoise).
void epilogue_grad(const py::tuple& inputs, const py::tuple& output, uint64_t dy, const py::tuple& grads, int dtype,
                   const py::tuple& size, bool channels_last, int64_t noise_stride_n, int64_t pixel_block,
                   uint64_t partials, int64_t stream) {
  const auto grad = [&](int i) { return atu::pointer(uint64_t(atu::item(grads, i))); };
  atu::EpilogueGradParams p;
  fill(p, inputs, output, dtype, size, channels_last, noise_stride_n);
  p.dy = atu::pointer(dy);
  p.du = grad(0), p.dd = grad(1), p.db = grad(2), p.dnoise = grad(3);
  p.pixel_block = pixel_block;
  p.partials = static_cast<double*>(atu::pointer(partials));
  ATU_CALL(epilogue_grad, p, stream);
}

// incoming is (gu, gd, gb, gn), grads is (d_dy, d_u, d_d, d_b, d_noise).
void epilogue_grad2(const py::tuple& inputs, const py::tuple& output, uint64_t dy, const py::tuple& incoming,
                    const py::tuple& grads, int dtype, const py::tuple& size, bool channels_last,
                    int64_t noise_stride_n, int64_t pixel_block, uint64_t partials, int64_t stream) {
  const auto in = [&](int i) { return atu::pointer(uint64_t(atu::item(incoming, i))); };
  const auto grad = [&](int i) { return atu::pointer(uint64_t(atu::item(grads, i))); };
  atu::EpilogueGrad2Params p;
  fill(p, inputs, output, dtype, size, channels_last, noise_stride_n);
  p.dy = atu::pointer(dy);
  p.gu = in(0), p.gd = in(1), p.gb = in(2), p.gn = in(3);
  p.d_dy = grad(0), p.d_u = grad(1), p.d_d = grad(2), p.d_b = grad(3), p.d_noise = grad(4);
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
