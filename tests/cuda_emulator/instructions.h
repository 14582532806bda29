// SPDX-License-Identifier: Apache-2.0
// Inline PTX, as translate.py leaves it: the text of the asm statement and its operands.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace emulator {

struct Register {
  void* address = nullptr;  // of a result
  uint64_t value = 0;
  unsigned bytes = 0;
};

template <class T>
Register in(const T& value) {
  Register r;
  static_assert(sizeof(T) <= 8);
  std::memcpy(&r.value, &value, sizeof(T));
  r.bytes = sizeof(T);
  return r;
}

template <class T>
Register out(T& value) {
  Register r = in(value);
  r.address = &value;
  return r;
}

// An asm statement, parsed once.
class Program {
 public:
  explicit Program(const char* text);
  void run(std::vector<Register> operands) const;

 private:
  struct Step {
    std::string code;  // with its modifiers
    std::vector<std::string> arguments;
  };
  std::vector<Step> steps_;
};

}  // namespace emulator
