// SPDX-License-Identifier: Apache-2.0
// Device helpers that several kernels use: 16-byte loads of half or float as floats, sums over a warp or a block,
// the two GELU forms, and the two halves of programmatic dependent launch.
#pragma once

#include <cuda_fp16.h>

namespace bert {

constexpr int kWarp = 32;

// The warp's number in its block, in a form that the compiler knows to be the same in all lanes: what is computed from it
// stays in uniform registers, where wgmma wants its descriptors.
__device__ inline int warp_index() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x / kWarp), 0); }

// Eight consecutive values as float, whatever they are stored as. Pointers are 16-byte aligned: every row is a multiple of 8.
struct Eight {
  float v[8];
};

__device__ inline Eight widen8(const uint4& raw) {
  const __half2* pairs = reinterpret_cast<const __half2*>(&raw);
  Eight out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 f = __half22float2(pairs[i]);
    out.v[2 * i] = f.x;
    out.v[2 * i + 1] = f.y;
  }
  return out;
}

__device__ inline Eight load8(const __half* p) { return widen8(*reinterpret_cast<const uint4*>(p)); }

__device__ inline Eight load8(const float* p) {
  const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ inline void store8(__half* p, const Eight& x) {
  uint4 raw;
  __half2* pairs = reinterpret_cast<__half2*>(&raw);
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = __floats2half2_rn(x.v[2 * i], x.v[2 * i + 1]);
  *reinterpret_cast<uint4*>(p) = raw;
}

__device__ inline void store8(float* p, const Eight& x) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(float x) { return x; }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline float from_float<float>(float x) { return x; }

template <class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

__device__ inline float2 warp_sum(float2 x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x.x += __shfl_xor_sync(~0u, x.x, step), x.y += __shfl_xor_sync(~0u, x.y, step);
  return x;
}

// Mean and variance of a row in one go: sums of differences from `origin`, a value of the row, and of their squares. No value is
// further than sqrt(columns) deviations from the mean, so at worst the variance loses columns * 2^-24 of itself.
__device__ inline void add_differences(float2& sums, const Eight& x, float origin) {
  float2 pairs[4];  // added up as a tree: kernels of a microsecond wait for such chains
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = x.v[2 * i] - origin, b = x.v[2 * i + 1] - origin;
    pairs[i] = {a + b, fmaf(a, a, b * b)};
  }
  sums.x += (pairs[0].x + pairs[1].x) + (pairs[2].x + pairs[3].x);
  sums.y += (pairs[0].y + pairs[1].y) + (pairs[2].y + pairs[3].y);
}

// Sum of the squared deviations from `mean` of a thread's part of a row: vector i begins at column_of(i), if the row is that long.
template <int kVectors, class ColumnOf>
__device__ inline float squared_deviations(const Eight (&v)[kVectors], float mean, int columns, ColumnOf column_of) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (column_of(i) >= columns) break;
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += (v[i].v[j] - mean) * (v[i].v[j] - mean);
  }
  return squares;
}

// Sum over a block of kThreads; every thread gets the result. `scratch` holds one float a warp.
template <int kThreads>
__device__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (kThreads == kWarp) return x;
  __syncthreads();  // the scratch may still be read by a sum before this one
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) total += scratch[i];
  return total;
}

constexpr float kGeluSlope = 0.7978845608028654f, kGeluCube = 0.7978845608028654f * 0.044715f;  // sqrt(2/pi), of x and of x^3

// x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the form of Google's BERT, of x = 2 half. tanh.approx has a relative error of 2^-11,
// that of the FP16 result.
__device__ inline float gelu_tanh_of_twice(float half) {
  const float inner = half * fmaf(8 * kGeluCube, half * half, 2 * kGeluSlope);
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(inner));
  return fmaf(half, t, half);
}

__device__ inline float gelu_erf(float x) { return 0.5f * x * (1.f + erff(x * 0.7071067811865476f)); }

// Programmatic dependent launch: a kernel may be on the machine before the one ahead of it ends. It must not touch what
// that one writes, nor write what that one reads, before wait_for_previous(). Without the launch attribute both are free.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace bert
