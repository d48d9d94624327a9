// The part of an emulated module that registers buffers: begin_operation([(address, bytes, name, fresh)]),
// end_operation.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "runtime.h"

inline void bind_emulation(pybind11::module_& m) {
  pybind11::register_exception<emu::Fault>(m, "Fault", PyExc_RuntimeError);
  m.def("begin_operation", [](const std::vector<std::tuple<std::uintptr_t, std::size_t, std::string, bool>>& list) {
    std::vector<emu::Buffer> buffers;
    for (const auto& [begin, bytes, name, fresh] : list) buffers.push_back({begin, bytes, name, fresh});
    emu::begin_operation(std::move(buffers));
  });
  m.def("end_operation", &emu::end_operation, pybind11::arg("check_written") = true);
}
