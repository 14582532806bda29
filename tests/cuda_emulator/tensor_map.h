// SPDX-License-Identifier: Apache-2.0
// What the emulator writes into a CUtensorMap.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace emulator {

struct TensorMap {
  static constexpr uint64_t kMagic = 0x70616d726f736e74;
  uint64_t magic;
  void* address;
  uint32_t element, rank, swizzle;  // bytes of an element; bytes of a swizzled row, 0 for none
  uint32_t extents[5], box[5];
  uint64_t pitches[5];  // bytes; the first dimension's is the element's
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

}  // namespace emulator
