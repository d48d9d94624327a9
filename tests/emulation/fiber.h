// A fiber: one emulated CUDA thread's stack, entered and left without system calls.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace emu {

struct Fiber {
#if defined(__x86_64__) || defined(__aarch64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context{};
#endif
};

// Prepares `fiber` to call entry(), which must never return, on the stack [stack, stack + bytes).
void fiber_init(Fiber& fiber, void* stack, std::size_t bytes, void (*entry)());

// Saves the running context in `from` and continues `to`.
void fiber_switch(Fiber& from, Fiber& to);

}  // namespace emu
