// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

namespace emulator {

#ifdef __x86_64__

asm(R"(
.text
.globl emulator_switch
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.globl emulator_begin
emulator_begin:
  mov %r12, %rdi
  call *%rbx
)");
extern "C" void emulator_begin();

void Fiber::start(char* stack, size_t bytes, void (*entry)(void*), void* argument) {
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
  *--top = nullptr;  // the stack is aligned at the call in emulator_begin
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(emulator_begin);
  *--top = nullptr;                          // rbp
  *--top = reinterpret_cast<void*>(entry);   // rbx
  *--top = argument;                         // r12
  for (int i = 13; i <= 15; ++i) *--top = nullptr;
  mine_ = top;
}

#else

namespace {

void begin(unsigned entry_high, unsigned entry_low, unsigned high, unsigned low) {
  const auto pointer = [](unsigned up, unsigned down) { return static_cast<uintptr_t>(up) << 32 | down; };
  reinterpret_cast<void (*)(void*)>(pointer(entry_high, entry_low))(reinterpret_cast<void*>(pointer(high, low)));
}

}  // namespace

void Fiber::start(char* stack, size_t bytes, void (*entry)(void*), void* argument) {
  getcontext(&mine_);
  mine_.uc_stack.ss_sp = stack;
  mine_.uc_stack.ss_size = bytes;
  const uintptr_t e = reinterpret_cast<uintptr_t>(entry), a = reinterpret_cast<uintptr_t>(argument);
  makecontext(&mine_, reinterpret_cast<void (*)()>(begin), 4, static_cast<unsigned>(e >> 32), static_cast<unsigned>(e), static_cast<unsigned>(a >> 32),
              static_cast<unsigned>(a));
}

#endif

}  // namespace emulator
