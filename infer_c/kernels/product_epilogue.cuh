// SPDX-License-Identifier: Apache-2.0
// What both Hopper products do with a finished sum (product_sm90.h, Epilogue).
#pragma once

#include "device.cuh"
#include "product_sm90.h"
#include "quantise.cuh"
#include "row_stats.cuh"

namespace bert {

__host__ __device__ constexpr bool is_eight_bit_gelu(Epilogue e) { return e == Epilogue::gelu_tanh || e == Epilogue::gelu_erf; }
__host__ __device__ constexpr bool has_norms(Epilogue e) { return e != Epilogue::bias && !is_eight_bit_gelu(e); }

// A norm as `finish` wants it: the tanh form in FP16 begins with half of its argument, for which the bias comes halved already.
template <Epilogue kEpilogue>
__device__ inline Norm prepared(Norm norm) {
  if constexpr (kEpilogue == Epilogue::norm_gelu_tanh) norm.scale *= 0.5f;
  return norm;
}

// What a product of kFormat writes, but for the queries and keys of Epilogue::bias, which are E4M3.
template <Format kFormat, Epilogue kEpilogue>
constexpr Format kOutFormat = is_eight_bit_gelu(kEpilogue) ? kFormat : Format::half;

// Row statistics are written where nothing but the next product reads the row.
template <Format kFormat, Epilogue kEpilogue>
constexpr bool kWritesStats = kFormat == Format::half && kEpilogue == Epilogue::residual;

// Queries and keys have a place of their own; the values of Epilogue::bias, FP16, begin behind them.
template <Epilogue kEpilogue, Format kOut>
constexpr bool kNarrow = kEpilogue == Epilogue::bias && kOut == Format::fp8;
template <Epilogue kEpilogue, Format kOut>
__device__ inline Stored<kOut>* results_of(const Product& p) {
  return static_cast<Stored<kOut>*>(kNarrow<kEpilogue, kOut> ? p.narrow_out : p.out);
}
// From there to column 0 of a row, or to where it would be.
template <Epilogue kEpilogue, Format kOut>
__device__ inline ptrdiff_t row_offset(const Product& p, int row) {
  if constexpr (kNarrow<kEpilogue, kOut>) return static_cast<ptrdiff_t>(row) * p.narrow_columns;
  const int first = kEpilogue == Epilogue::bias ? p.narrow_columns : 0;
  return static_cast<ptrdiff_t>(row) * (p.columns - first) - first;
}

// Values of one column.
struct Column {
  float scale, bias, factor;
};

template <Format kFormat, Epilogue kEpilogue, class Sum>
__device__ inline float finish(Sum sum, const Column& c, Norm norm, float residual, float inverse_scale) {
  const float x = kFormat == Format::half ? static_cast<float>(sum) : static_cast<float>(sum) * c.scale;
  if constexpr (kEpilogue == Epilogue::residual) return x + c.bias + (residual - norm.mean) * norm.scale * c.factor;
  if constexpr (kEpilogue == Epilogue::bias) return x + c.bias;
  if constexpr (kEpilogue == Epilogue::gelu_erf) return gelu_erf(x + c.bias) * inverse_scale;
  const float y = norm.scale * (x - norm.mean * c.factor) + c.bias;
  if constexpr (kEpilogue == Epilogue::norm_gelu_tanh) return gelu_tanh_of_twice(y);
  if constexpr (kEpilogue == Epilogue::norm_gelu_erf) return gelu_erf(y);
  return y;
}

// Two neighbours of a row, as they are stored.
template <Format kFormat, Epilogue kEpilogue, Format kOut, class Sum>
__device__ inline Pair<kOut> finish_pair(Sum a, Sum b, const Column& left, const Column& right, const Norm& norm, float2 residual, float inverse_scale) {
  // A GELU's result is the half of its argument, in units of what is stored, times something; a scale beyond FP16 is cut: that of
  // tensors whose largest value is below 0.0035.
  if constexpr (kEpilogue == Epilogue::gelu_tanh) {
    const __half2 factor = __float2half2_rn(fminf(0.5f * inverse_scale, 65504.f));
    return narrow_gelu_tanh<kOut>(static_cast<float>(a) * left.scale + left.bias, static_cast<float>(b) * right.scale + right.bias, factor);
  } else {
    return narrow_pair<kOut>(finish<kFormat, kEpilogue>(a, left, norm, residual.x, inverse_scale),
                             finish<kFormat, kEpilogue>(b, right, norm, residual.y, inverse_scale));
  }
}

}  // namespace bert
