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
