// SPDX-License-Identifier: Apache-2.0
// Floats to FP16 or 8 bits; rounding to nearest even, saturating. Values come multiplied by the inverse of the tensor's scale already.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "device.cuh"
#include "format.h"

namespace bert {

template <Format kFormat>
using Stored = std::conditional_t<kFormat == Format::half, __half, uint8_t>;

// What two neighbouring values are stored as: 4 bytes of FP16, 2 bytes otherwise; the first value in the low half.
template <Format kFormat>
using Pair = std::conditional_t<kFormat == Format::half, uint32_t, uint16_t>;

template <Format kFormat>
__device__ inline Pair<kFormat> narrow_pair(float a, float b) {
  if constexpr (kFormat == Format::half) {
    const __half2 h = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t&>(h);
  } else if constexpr (kFormat == Format::fp8) {
    return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  } else {
    // Symmetric: -128 is never used, as in quantisation-aware training. Beside 1.5 * 2^23 a float's last bits count whole
    // numbers, so the addition rounds, and the low byte is the result: cheaper than a conversion.
    constexpr float kShift = 12582912.f;
    const float x = fmaxf(fminf(a, 127.f), -127.f) + kShift, y = fmaxf(fminf(b, 127.f), -127.f) + kShift;
    return static_cast<uint16_t>(__byte_perm(__float_as_uint(x), __float_as_uint(y), 0x0040));
  }
}

// Values in FP16 as 8 bits.
template <Format kFormat>
__device__ inline Pair<kFormat> narrow_pair(__half2 x) {
  static_assert(kFormat != Format::half);
  if constexpr (kFormat == Format::fp8) {
    return __nv_cvt_halfraw2_to_fp8x2(static_cast<__half2_raw>(x), __NV_SATFINITE, __NV_E4M3);
  } else {  // as above; beside 1.5 * 2^10 the last bits of FP16 count whole numbers
    const __half2 whole = __hadd2(__hmax2(__hmin2(x, __float2half2_rn(127.f)), __float2half2_rn(-127.f)), __float2half2_rn(1536.f));
    return static_cast<uint16_t>(__byte_perm(reinterpret_cast<const uint32_t&>(whole), 0, 0x0020));
  }
}

// Twice `factor` times the GELU (device.cuh, gelu_tanh_of_twice) of two values. In FP16, two at a time: its steps are a small part of those
// of 8 bits. `factor` is finite.
template <Format kFormat>
__device__ inline Pair<kFormat> narrow_gelu_tanh(float a, float b, __half2 factor) {
  const auto both = [](float x) { return __float2half2_rn(x); };
  const __half2 x = __floats2half2_rn(a, b), inner = __hmul2(x, __hfma2(__hmul2(x, x), both(kGeluCube), both(kGeluSlope)));
  uint32_t tangent;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(tangent) : "r"(reinterpret_cast<const uint32_t&>(inner)));
  const __half2 half = __hmax2(__hmul2(x, factor), both(-65504.f));  // where it would be infinite the sum below has no value
  return narrow_pair<kFormat>(__hfma2(half, reinterpret_cast<const __half2&>(tangent), half));
}

// gamma or beta in units of the stored values.
__device__ inline Eight stored_units(const float* from, float inverse_scale) {
  Eight x = load8(from);
#pragma unroll
  for (float& v : x.v) v *= inverse_scale;
  return x;
}

// Eight values of a row after its LayerNorm, into 8 bits; gamma and beta in stored units.
template <Format kFormat>
__device__ inline void store_normal(uint8_t* to, const Eight& x, float mean, float scale, const Eight& gamma, const Eight& beta) {
  const float shift = -mean * scale;
  unsigned pairs[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const auto normal = [&](int k) { return fmaf(fmaf(x.v[k], scale, shift), gamma.v[k], beta.v[k]); };
    pairs[j] = narrow_pair<kFormat>(normal(2 * j), normal(2 * j + 1));
  }
  *reinterpret_cast<uint2*>(to) = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

}  // namespace bert
