#include <pybind11/pybind11.h>

#include "emulation_module.h"
#include "selftest.h"

PYBIND11_MODULE(_emulation_selftest, m) {
  bind_emulation(m);
  m.def("selftest", [](const std::string& name, std::uintptr_t x, std::uintptr_t y, std::int64_t n) {
    selftest(name, reinterpret_cast<float*>(x), reinterpret_cast<float*>(y), n);
  });
}
