// Small kernels that exercise the emulation (selftest.cu); the faulty ones must be caught.
#pragma once

#include <cstdint>
#include <string>

// Runs the named case on two buffers of floats; see selftest.cu.
void selftest(const std::string& name, float* x, float* y, std::int64_t n);
