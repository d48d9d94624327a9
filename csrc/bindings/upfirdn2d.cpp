#include "kernels/upfirdn2d.h"

#include "bindings/convert.h"

namespace py = pybind11;

namespace {

// Sizes and strides are (n, c, h, w) tuples, f_size (taps,) when separable or (h, w); up, down are (x, y); stream is -1
// for the CPU.
void upfirdn2d(uint64_t x, uint64_t f, uint64_t y, int dtype, bool channels_last, const py::tuple& x_size,
               const py::tuple& x_stride, const py::tuple& y_size, const py::tuple& y_stride, const py::tuple& f_size,
               int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y, int64_t pad_x0, int64_t pad_y0,
               bool flip_filter, double gain, int64_t stream) {
  const char* const name = "upfirdn2d";
  atu::Upfirdn2dParams p;
  p.x = atu::pointer(x);
  p.f = atu::pointer(f);
  p.y = atu::pointer(y);
  p.dtype = atu::checked<atu::DType>({name, "dtype"}, dtype);
  p.channels_last = channels_last;
  p.separable = f_size.size() == 1;
  p.flip_filter = flip_filter;
  p.gain = gain;
  int64_t y_n, y_c;  // as x's
  atu::fill({name, "y_size"}, y_size, y_n, y_c, p.out_h, p.out_w);
  atu::fill({name, "x_size"}, x_size, p.n, p.c, p.h, p.w);
  atu::fill({name, "x_stride"}, x_stride, p.x_stride_n, p.x_stride_c, p.x_stride_h, p.x_stride_w);
  atu::fill({name, "y_stride"}, y_stride, p.y_stride_n, p.y_stride_c, p.y_stride_h, p.y_stride_w);
  if (p.separable) {
    atu::fill({name, "f_size"}, f_size, p.filter_h);
    p.filter_w = p.filter_h;
  } else {
    atu::fill({name, "f_size"}, f_size, p.filter_h, p.filter_w);
  }
  p.up_x = up_x, p.up_y = up_y, p.down_x = down_x, p.down_y = down_y;
  p.pad_x0 = pad_x0, p.pad_y0 = pad_y0;
  ATU_CALL(upfirdn2d, p, stream);
}

}  // namespace

void bind_upfirdn2d(py::module_& m) {
  m.def("upfirdn2d", &upfirdn2d);
}
