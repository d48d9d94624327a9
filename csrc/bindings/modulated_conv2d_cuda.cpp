// The modulated layer's CUDA-only functions. The last argument is the stream; -1, which stands for the CPU, is refused.
#include "bindings/convert.h"
#include "kernels/modulated_conv2d.h"
#include "kernels/modulated_conv2d_gemm.h"

#include <stdexcept>

namespace py = pybind11;

#if ATU_HAS_CUDA
namespace {

void* cuda_stream(int64_t stream) {
  if (stream < 0) throw std::invalid_argument("expected CUDA tensors: there is no CPU kernel");
  return atu::pointer(uint64_t(stream));
}

// size is (n, o, c, taps).
void demodulate(uint64_t w, uint64_t styles, uint64_t d, int dtype, const py::tuple& size, bool channels_last,
                int64_t stream) {
  using atu::item;
  const atu::DemodulateParams p{atu::DType(dtype), item(size, 0),   item(size, 1),        item(size, 2),  item(size, 3),
                                channels_last,     atu::pointer(w), atu::pointer(styles), atu::pointer(d)};
  void* const on = cuda_stream(stream);
  py::gil_scoped_release release;
  atu::demodulate_cuda(p, on);
}

// inputs is (u, d, noise, bias, next), output (act, alpha, gain, clamp), size (n, c, pixels); y may be 0.
void epilogue_scaled(const py::tuple& inputs, const py::tuple& output, uint64_t y, uint64_t scaled, int dtype,
                     const py::tuple& size, bool channels_last, int64_t noise_stride_n, int64_t stream) {
  using atu::item;
  const auto input = [&](int i) { return atu::pointer(uint64_t(item(inputs, i))); };
  atu::EpilogueScaledParams p;
  p.u = input(0), p.d = input(1), p.noise = input(2), p.bias = input(3), p.next = input(4);
  p.act = atu::Act(item(output, 0));
  p.alpha = output[1].cast<double>(), p.gain = output[2].cast<double>(), p.clamp = output[3].cast<double>();
  p.dtype = atu::DType(dtype);
  p.n = item(size, 0), p.c = item(size, 1), p.pixels = item(size, 2);
  p.channels_last = channels_last, p.noise_stride_n = noise_stride_n;
  p.y = atu::pointer(y), p.scaled = atu::pointer(scaled);
  void* const on = cuda_stream(stream);
  py::gil_scoped_release release;
  atu::epilogue_scaled_cuda(p, on);
}

// tensors is (x, w, in_scale, out_scale, noise, bias, u, y), in_size (n, c, h, w), out_size (c, h, w),
// kernel (kh, kw, stride, pad_y, pad_x), output (act, alpha, gain, clamp).
void modulated_conv2d_gemm(const py::tuple& tensors, int dtype, int tile, const py::tuple& in_size,
                           const py::tuple& out_size, const py::tuple& kernel, int64_t noise_stride_n,
                           const py::tuple& output, int64_t stream) {
  using atu::item;
  const auto tensor = [&](int i) { return atu::pointer(uint64_t(item(tensors, i))); };
  atu::ModulatedGemmParams p;
  p.dtype = atu::DType(dtype), p.tile = atu::GemmTile(tile);
  p.n = item(in_size, 0), p.in_c = item(in_size, 1), p.in_h = item(in_size, 2), p.in_w = item(in_size, 3);
  p.out_c = item(out_size, 0), p.out_h = item(out_size, 1), p.out_w = item(out_size, 2);
  p.kernel_h = item(kernel, 0), p.kernel_w = item(kernel, 1), p.stride = item(kernel, 2);
  p.pad_y = item(kernel, 3), p.pad_x = item(kernel, 4);
  p.x = tensor(0), p.w = tensor(1), p.in_scale = tensor(2), p.out_scale = tensor(3), p.noise = tensor(4);
  p.noise_stride_n = noise_stride_n;
  p.bias = tensor(5), p.u = tensor(6), p.y = tensor(7);
  p.act = atu::Act(item(output, 0));
  p.alpha = output[1].cast<double>(), p.gain = output[2].cast<double>(), p.clamp = output[3].cast<double>();
  void* const on = cuda_stream(stream);
  py::gil_scoped_release release;
  atu::modulated_conv2d_gemm_cuda(p, on);
}

}  // namespace
#endif

void bind_modulated_conv2d_cuda(py::module_& m) {
#if ATU_HAS_CUDA
  m.def("demodulate", &demodulate);
  m.def("epilogue_scaled", &epilogue_scaled);
  m.def("modulated_conv2d_gemm", &modulated_conv2d_gemm);
#else
  (void)m;
#endif
}
