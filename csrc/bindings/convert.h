// Python values to kernel parameters. Tuples are read by `fill` alone, which checks their length and their elements'
// types; that they describe the tensors is the Python side's business.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>

#include "kernels/bias_act.h"
#include "kernels/common.h"
#include "kernels/modulated_conv2d_gemm.h"

namespace atu {

// The Python side passes torch's data_ptr(), an int; 0 stands for an absent tensor.
inline void* pointer(uint64_t address) {
  return reinterpret_cast<void*>(address);
}

// A bound function and one of its arguments, for messages.
struct Argument {
  const char* function;
  const char* name;
};

[[noreturn]] inline void refuse_size(const Argument& argument, size_t expected, size_t got) {
  throw pybind11::value_error(std::string(argument.function) + ": " + argument.name + ": expected " +
                              std::to_string(expected) + " elements, got " + std::to_string(got));
}

[[noreturn]] inline void refuse_item(const Argument& argument, size_t i, const char* expected, PyObject* got) {
  PyErr_Clear();
  throw pybind11::type_error(std::string(argument.function) + ": " + argument.name + "[" + std::to_string(i) +
                             "]: expected " + expected + ", got " + pybind11::repr(got).cast<std::string>());
}

// How many values an enum of the kernels has.
template <typename Enum>
constexpr int64_t kValues = 0;
template <>
inline constexpr int64_t kValues<DType> = 4;
template <>
inline constexpr int64_t kValues<Act> = 9;
template <>
inline constexpr int64_t kValues<Reference> = 3;
template <>
inline constexpr int64_t kValues<GemmTile> = 3;

template <typename Enum>
inline Enum checked(const Argument& argument, int64_t value) {
  if (value < 0 || value >= kValues<Enum>) {
    throw pybind11::value_error(std::string(argument.function) + ": " + argument.name + ": expected 0 to " +
                                std::to_string(kValues<Enum> - 1) + ", got " + std::to_string(value));
  }
  return Enum(value);
}

// One element, by the type of the field it goes to: an address (int) to a pointer, an int to an integer or an enum, a
// number to a double.
template <typename Field>
inline void fill_item(const Argument& argument, size_t i, PyObject* item, Field& field) {
  if constexpr (std::is_floating_point_v<Field>) {
    const double value = PyFloat_AsDouble(item);
    if (value == -1 && PyErr_Occurred()) refuse_item(argument, i, "a number", item);
    field = value;
  } else {
    static_assert(std::is_pointer_v<Field> || std::is_enum_v<Field> || std::is_same_v<Field, int64_t>);
    const int64_t value = PyLong_AsLongLong(item);
    if (value == -1 && PyErr_Occurred()) refuse_item(argument, i, "an int", item);
    if constexpr (std::is_pointer_v<Field>) {
      field = static_cast<Field>(pointer(uint64_t(value)));
    } else if constexpr (std::is_enum_v<Field>) {
      field = checked<Field>(argument, value);
    } else {
      field = value;
    }
  }
}

// The elements of a tuple, in order, into as many fields.
template <typename... Fields>
inline void fill(const Argument& argument, const pybind11::tuple& values, Fields&... fields) {
  const size_t size = size_t(PyTuple_GET_SIZE(values.ptr()));
  if (size != sizeof...(Fields)) refuse_size(argument, sizeof...(Fields), size);
  size_t i = 0;
  ((fill_item(argument, i, PyTuple_GET_ITEM(values.ptr(), i), fields), ++i), ...);
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
