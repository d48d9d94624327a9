// The emulation's C interface, called from Python through ctypes (tests/backends.py).
#include "runtime.h"

#define EMU_API extern "C" __attribute__((visibility("default")))

struct ApiBuffer {
  std::uintptr_t begin;
  std::size_t bytes;
  const char* name;
  int fresh;
};

EMU_API void atu_emulation_begin(const ApiBuffer* list, int count) {
  std::vector<emu::Buffer> buffers;
  for (int i = 0; i < count; ++i) buffers.push_back({list[i].begin, list[i].bytes, list[i].name, list[i].fresh != 0});
  emu::begin_operation(std::move(buffers));
}

// Null, or which output was left unwritten.
EMU_API const char* atu_emulation_end(int check_written) {
  static std::string message;
  try {
    emu::end_operation(check_written != 0);
    return nullptr;
  } catch (const emu::Fault& fault) {
    message = fault.what();
    return message.c_str();
  }
}
