#include "kernels/upfirdn2d.h"

#include "bindings/convert.h"

namespace py = pybind11;

namespace {

// Sizes and strides are (n, c, h, w) tuples; up, down are (x, y); stream is -1 for the CPU.
void upfirdn2d(uint64_t x, uint64_t f, uint64_t y, int dtype, bool channels_last, const py::tuple& x_size,
               const py::tuple& x_stride, const py::tuple& y_size, const py::tuple& y_stride, const py::tuple& f_size,
               int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y, int64_t pad_x0, int64_t pad_y0,
               bool flip_filter, double gain, int64_t stream) {
  using atu::item;
  atu::Upfirdn2dParams p;
  p.x = atu::pointer(x);
  p.f = atu::pointer(f);
  p.y = atu::pointer(y);
  p.dtype = atu::DType(dtype);
  p.channels_last = channels_last;
  p.separable = f_size.size() == 1;
  p.flip_filter = flip_filter;
  p.gain = gain;
  p.n = item(x_size, 0), p.c = item(x_size, 1), p.h = item(x_size, 2), p.w = item(x_size, 3);
  p.out_h = item(y_size, 2), p.out_w = item(y_size, 3);
  p.x_stride_n = item(x_stride, 0), p.x_stride_c = item(x_stride, 1);
  p.x_stride_h = item(x_stride, 2), p.x_stride_w = item(x_stride, 3);
  p.y_stride_n = item(y_stride, 0), p.y_stride_c = item(y_stride, 1);
  p.y_stride_h = item(y_stride, 2), p.y_stride_w = item(y_stride, 3);
  p.filter_h = item(f_size, 0);
  p.filter_w = item(f_size, p.separable ? 0 : 1);
  p.up_x = up_x, p.up_y = up_y, p.down_x = down_x, p.down_y = down_y;
  p.pad_x0 = pad_x0, p.pad_y0 = pad_y0;
  ATU_CALL(upfirdn2d, p, stream);
}

}  // namespace

void bind_upfirdn2d(py::module_& m) {
  m.def("upfirdn2d", &upfirdn2d);
}
