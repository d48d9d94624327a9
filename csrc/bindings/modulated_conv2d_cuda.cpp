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
  atu::DemodulateParams p;
  p.dtype = atu::checked<atu::DType>({"demodulate", "dtype"}, dtype);
  atu::fill({"demodulate", "size"}, size, p.n, p.o, p.c, p.taps);
  p.channels_last = channels_last;
  p.w = atu::pointer(w), p.styles = atu::pointer(styles), p.d = atu::pointer(d);
  void* const on = cuda_stream(stream);
  py::gil_scoped_release release;
  atu::demodulate_cuda(p, on);
}

// inputs is (u, d, noise, bias, next), output (act, alpha, gain, clamp), size (n, c, pixels); y may be 0.
void epilogue_scaled(const py::tuple& inputs, const py::tuple& output, uint64_t y, uint64_t scaled, int dtype,
                     const py::tuple& size, bool channels_last, int64_t noise_stride_n, int64_t stream) {
  atu::EpilogueScaledParams p;
  atu::fill({"epilogue_scaled", "inputs"}, inputs, p.u, p.d, p.noise, p.bias, p.next);
  atu::fill({"epilogue_scaled", "output"}, output, p.act, p.alpha, p.gain, p.clamp);
  p.dtype = atu::checked<atu::DType>({"epilogue_scaled", "dtype"}, dtype);
  atu::fill({"epilogue_scaled", "size"}, size, p.n, p.c, p.pixels);
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
  const char* const name = "modulated_conv2d_gemm";
  atu::ModulatedGemmParams p;
  p.dtype = atu::checked<atu::DType>({name, "dtype"}, dtype);
  p.tile = atu::checked<atu::GemmTile>({name, "tile"}, tile);
  atu::fill({name, "tensors"}, tensors, p.x, p.w, p.in_scale, p.out_scale, p.noise, p.bias, p.u, p.y);
  atu::fill({name, "in_size"}, in_size, p.n, p.in_c, p.in_h, p.in_w);
  atu::fill({name, "out_size"}, out_size, p.out_c, p.out_h, p.out_w);
  atu::fill({name, "kernel"}, kernel, p.kernel_h, p.kernel_w, p.stride, p.pad_y, p.pad_x);
  p.noise_stride_n = noise_stride_n;
  atu::fill({name, "output"}, output, p.act, p.alpha, p.gain, p.clamp);
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
