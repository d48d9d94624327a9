#include "fiber.h"

#include <cstdint>

#if defined(__x86_64__)
// System V: rbx, rbp, r12-r15 and the stack pointer survive a call; nothing else need be kept.
asm(R"(
.text
.globl atu_emu_switch
.type atu_emu_switch, @function
atu_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size atu_emu_switch, .-atu_emu_switch
)");
extern "C" void atu_emu_switch(void** save, void* load);

namespace emu {

void fiber_init(Fiber& fiber, void* stack, std::size_t bytes, void (*entry)()) {
  auto top = (reinterpret_cast<std::uintptr_t>(stack) + bytes) & ~std::uintptr_t{15};
  auto* words = reinterpret_cast<std::uintptr_t*>(top);
  // At entry() the stack must look as after a call: aligned to 16, less 8.
  *--words = 0;
  *--words = reinterpret_cast<std::uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--words = 0;
  fiber.stack_pointer = words;
}

void fiber_switch(Fiber& from, Fiber& to) {
  atu_emu_switch(&from.stack_pointer, to.stack_pointer);
}

}  // namespace emu

#elif defined(__aarch64__)
// AAPCS64: x19-x30 and d8-d15 survive a call.
asm(R"(
.text
.globl atu_emu_switch
.type atu_emu_switch, %function
atu_emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size atu_emu_switch, .-atu_emu_switch
)");
extern "C" void atu_emu_switch(void** save, void* load);

namespace emu {

void fiber_init(Fiber& fiber, void* stack, std::size_t bytes, void (*entry)()) {
  auto top = (reinterpret_cast<std::uintptr_t>(stack) + bytes) & ~std::uintptr_t{15};
  auto* words = reinterpret_cast<std::uintptr_t*>(top) - 20;
  for (int i = 0; i < 20; ++i) words[i] = 0;
  words[11] = reinterpret_cast<std::uintptr_t>(entry);  // x30, the return address
  fiber.stack_pointer = words;
}

void fiber_switch(Fiber& from, Fiber& to) {
  atu_emu_switch(&from.stack_pointer, to.stack_pointer);
}

}  // namespace emu

#else
namespace emu {

void fiber_init(Fiber& fiber, void* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

void fiber_switch(Fiber& from, Fiber& to) {
  swapcontext(&from.context, &to.context);
}

}  // namespace emu
#endif
