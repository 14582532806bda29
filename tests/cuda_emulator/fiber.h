// SPDX-License-Identifier: Apache-2.0
// Two stacks that take turns in one thread of the system.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

#ifdef __x86_64__
// Save what a call preserves, put the stack pointer at *from, go on at `to`. swapcontext does it too, with two system calls.
extern "C" void emulator_switch(void** from, void* to);
#endif

class Fiber {
 public:
  // Run entry(argument), which never returns, on a stack at the first resume().
  void start(char* stack, size_t bytes, void (*entry)(void*), void* argument);
  void resume();  // from the scheduler, until suspend()
  void suspend();

 private:
#ifdef __x86_64__
  void *mine_ = nullptr, *schedulers_ = nullptr;  // stack pointers
#else
  ucontext_t mine_, schedulers_;
#endif
};

#ifdef __x86_64__
inline void Fiber::resume() { emulator_switch(&schedulers_, mine_); }
inline void Fiber::suspend() { emulator_switch(&mine_, schedulers_); }
#else
inline void Fiber::resume() { swapcontext(&schedulers_, &mine_); }
inline void Fiber::suspend() { swapcontext(&mine_, &schedulers_); }
#endif

}  // namespace emulator
