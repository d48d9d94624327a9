// The module atu_ext._C: hands pointers through, checks nothing twice, knows no math.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "kernels/cpu_isa.h"
#include "kernels/cuda_obstacle.h"

#if ATU_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

void bind_bias_act(py::module_& m);
void bind_modulated_conv2d(py::module_& m);
void bind_modulated_conv2d_cuda(py::module_& m);
void bind_param_penalty(py::module_& m);
void bind_upfirdn2d(py::module_& m);

namespace {

atu::CpuIsa isa_from_name(const std::string& name) {
  for (int i = 0; i < atu::kCpuIsas; ++i) {
    if (name == atu::cpu_isa_name(atu::CpuIsa(i))) return atu::CpuIsa(i);
  }
  throw std::invalid_argument("isa: expected baseline, avx2, avx512 or avx512_bf16, got '" + name + "'");
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = ATU_BUILD_COMPILER;
  info["cuda"] = bool(ATU_HAS_CUDA);
  info["cuda_version"] = ATU_BUILD_CUDA_VERSION;
  info["cuda_architectures"] = ATU_BUILD_CUDA_ARCHITECTURES;
  info["cuda_reason"] = ATU_BUILD_CUDA_REASON;
  return info;
}

// Number of CUDA devices the driver shows, and its error text where it shows none.
py::tuple cuda_devices() {
#if ATU_HAS_CUDA
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return py::make_tuple(error == cudaSuccess ? count : 0, error == cudaSuccess ? "" : cudaGetErrorString(error));
#else
  return py::make_tuple(0, "built without CUDA");
#endif
}

std::string cuda_obstacle() {
#if ATU_HAS_CUDA
  return atu::cuda_obstacle();
#else
  return "built without CUDA";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of atu_ext";
  m.def("build_info", &build_info);
  m.def("cuda_devices", &cuda_devices);
  m.def("cuda_obstacle", &cuda_obstacle);
  m.def("cpu_isa", [] { return atu::cpu_isa_name(atu::cpu_isa()); });
  m.def("cpu_isas", [] {
    py::list names;
    for (int i = 0; i < atu::kCpuIsas; ++i) {
      if (atu::cpu_isa_supported(atu::CpuIsa(i))) names.append(atu::cpu_isa_name(atu::CpuIsa(i)));
    }
    return names;
  });
  m.def("set_cpu_isa", [](const std::string& name) {
    if (!atu::set_cpu_isa(isa_from_name(name))) throw std::invalid_argument("isa: this CPU lacks " + name);
  });
  bind_bias_act(m);
  bind_modulated_conv2d(m);
  bind_modulated_conv2d_cuda(m);
  bind_param_penalty(m);
  bind_upfirdn2d(m);
}
