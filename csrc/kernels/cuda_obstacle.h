// Whether this build's CUDA kernels can run at all on a device: they may have been built for other GPUs, or for a newer
// driver.
#pragma once

#include <string>

namespace atu {

// Why they cannot on the current device, in the CUDA runtime's words; empty where they can.
std::string cuda_obstacle();

}  // namespace atu
