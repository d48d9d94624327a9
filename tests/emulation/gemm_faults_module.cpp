// The implicit GEMM with faults that can be switched on one at a time (test_modulated_conv2d_gemm.py plants them).
#include <pybind11/pybind11.h>

int planted_fault = 0;

void bind_modulated_conv2d_cuda(pybind11::module_& m);

PYBIND11_MODULE(gemm_faults, m) {
  bind_modulated_conv2d_cuda(m);
  m.def("plant", [](int fault) { planted_fault = fault; });
}
