// Python values to kernel parameters. The Python side has checked them.
#pragma once

#include <pybind11/pybind11.h>

#include "kernels/common.h"

namespace atu {

// The Python side passes torch's data_ptr(), an int; 0 stands for an absent tensor.
inline void* pointer(uint64_t address) {
  return reinterpret_cast<void*>(address);
}

// Element i of a tuple of ints (torch.Size is one, and so is Tensor.stride()).
inline int64_t item(const pybind11::tuple& values, int i) {
  return PyLong_AsLongLong(PyTuple_GET_ITEM(values.ptr(), i));
}

}  // namespace atu

// Runs atu::NAME_cpu(params), or atu::NAME_cuda(params, stream) where stream >= 0 (-1 stands for the CPU), without the
// GIL.
#if ATU_HAS_CUDA
#define ATU_CALL(NAME, PARAMS, STREAM)                          \
  do {                                                          \
    pybind11::gil_scoped_release release;                       \
    if ((STREAM) >= 0) {                                        \
      atu::NAME##_cuda(PARAMS, atu::pointer(uint64_t(STREAM))); \
    } else {                                                    \
      atu::NAME##_cpu(PARAMS);                                  \
    }                                                           \
  } while (false)
#else
#define ATU_CALL(NAME, PARAMS, STREAM)    \
  do {                                    \
    pybind11::gil_scoped_release release; \
    (void)(STREAM);                       \
    atu::NAME##_cpu(PARAMS);              \
  } while (false)
#endif
