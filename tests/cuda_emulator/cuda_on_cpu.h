// SPDX-License-Identifier: Apache-2.0
// Included ahead of every CUDA source: what nvcc knows by itself, for g++. The rest is done by translate.py.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "instructions.h"
#include "machine.h"

#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __shared__  // translate.py looks for it
#undef __align__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define cudaLaunchKernelEx ::emulator::launch

// threadIdx and its like: not macros, as cudaLaunchConfig_t has members of these names.
template <auto kValue>
struct EmulatorNumber {
  operator unsigned() const { return kValue(); }
};
#define EMULATOR_INDEX(name, value)                                     \
  inline unsigned emulator_##name##_x() { return value.x; }             \
  inline unsigned emulator_##name##_y() { return value.y; }             \
  inline unsigned emulator_##name##_z() { return value.z; }             \
  inline const struct {                                                 \
    EmulatorNumber<emulator_##name##_x> x;                              \
    EmulatorNumber<emulator_##name##_y> y;                              \
    EmulatorNumber<emulator_##name##_z> z;                              \
  } name {}
EMULATOR_INDEX(threadIdx, emulator::thread().index);
EMULATOR_INDEX(blockIdx, emulator::thread().block->index);
EMULATOR_INDEX(blockDim, emulator::machine->size);
EMULATOR_INDEX(gridDim, emulator::machine->grid);
#undef EMULATOR_INDEX

template <class A, class B>
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <class A, class B>
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(emulator::in(x).value); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>(bytes >> (s >> 4 * i & 7) * 8 & 255) << 8 * i;
  return out;
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  const float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
  return __floats2half2_rn(std::fma(x.x, y.x, z.x), std::fma(x.y, y.y, z.y));
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}

inline size_t __cvta_generic_to_shared(const void* p) { return emulator::shared_address(p); }
inline void __syncthreads() { emulator::named_barrier(0, 0, true); }

inline const uint64_t* emulator_all_lanes(unsigned mask, uint64_t value) {
  if (mask != ~0u) emulator::fault("the emulator knows only whole warps");
  return emulator::collect(value);
}
inline void __syncwarp() { emulator_all_lanes(~0u, 0); }
inline int __any_sync(unsigned mask, int x) {
  const uint64_t* all = emulator_all_lanes(mask, x != 0);
  return std::any_of(all, all + emulator::kWarp, [](uint64_t lane) { return lane != 0; });
}
template <class T>
T emulator_from_lane(unsigned mask, T value, unsigned lane) {
  T got;
  std::memcpy(&got, emulator_all_lanes(mask, emulator::in(value).value) + lane % emulator::kWarp, sizeof(T));
  return got;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return emulator_from_lane(mask, value, static_cast<unsigned>(lane));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
  return emulator_from_lane(mask, value, emulator::thread().lane() ^ static_cast<unsigned>(step));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
  const unsigned lane = emulator::thread().lane();
  return emulator_from_lane(mask, value, lane < step ? lane : lane - step);
}
