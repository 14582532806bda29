// SPDX-License-Identifier: Apache-2.0
// What the two Hopper attention kernels share: the tile shape, softmax on the result registers of a 64 x N product, the store
// of a finished tile, and the choice of an instance by head size and format.
#pragma once

#include <type_traits>

#include "attention.h"
#include "device.cuh"
#include "quantise.cuh"
#include "wgmma.cuh"

namespace bert::attention {

constexpr int kTile = 64;      // queries of a warpgroup; also the keys of a box
constexpr int kMaxBoxes = 8;   // of a sequence: 512 tokens
constexpr int kGroup = 128;    // threads of a warpgroup

// What queries and keys are stored as where the context is of kFormat, the bytes of a row of them, and of values; a box is kTile rows.
template <Format kFormat>
constexpr Format kKeyFormat = kFormat == Format::half ? Format::half : Format::fp8;
template <int kHead, Format kFormat>
constexpr int kKeyRow = kHead * bytes_of(kFormat);
template <int kHead>
constexpr int kValueRow = kHead * 2;

// The launchers; attention_sm90() chooses between them. Arguments as there.
void run_split(cudaStream_t stream, const AttentionMaps& maps, void* context, Format format, const AttentionScales& scales, const int* cu_seqlens,
               const AttentionShape& shape);
void run_stream(cudaStream_t stream, const AttentionMaps& maps, void* context, Format format, const AttentionScales& scales, const int* cu_seqlens,
                const AttentionShape& shape, int multiprocessors);

// Calls f(head size, format) with both as types, integral_constants.
template <class F>
void with_constants(int head_size, Format format, const F& f) {
  const auto with_format = [&](auto head) {
    switch (format) {
      case Format::half: return f(head, std::integral_constant<Format, Format::half>());
      case Format::int8: return f(head, std::integral_constant<Format, Format::int8>());
      case Format::fp8: return f(head, std::integral_constant<Format, Format::fp8>());
    }
  };
  if (head_size == 64) {
    with_format(std::integral_constant<int, 64>());
  } else {
    with_format(std::integral_constant<int, 32>());
  }
}

using sm90::Rows;

// --- softmax; in base 2 ---

// What scores are multiplied by: log2(e) / sqrt(head size).
template <int kHead>
__device__ inline float score_scale() {
  return rsqrtf(static_cast<float>(kHead)) * 1.4426950408889634f;
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Largest scores of the rows, `most` included; the four threads of a row agree.
template <int kCount>
__device__ inline Rows row_max(const float (&s)[kCount], Rows most) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    most.a = fmaxf(most.a, fmaxf(s[i], s[i + 1]));
    most.b = fmaxf(most.b, fmaxf(s[i + 2], s[i + 3]));
  }
#pragma unroll
  for (int i = 1; i < 4; i *= 2) {
    most.a = fmaxf(most.a, __shfl_xor_sync(~0u, most.a, i));
    most.b = fmaxf(most.b, __shfl_xor_sync(~0u, most.b, i));
  }
  return most;
}

// Columns from `keys` on do not exist.
template <int kCount>
__device__ inline void mask(float (&s)[kCount], int keys) {
  const int pair = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i / 4 * 8 + pair + i % 2 >= keys) s[i] = -INFINITY;
  }
}

// Weights 2 ** (s * scale - base) as operands of the next product, 16 columns each: results lie in registers as a left operand does.
// Returns their sums.
template <int kCount>
__device__ inline Rows weigh(const float (&s)[kCount], uint32_t (&weights)[kCount / 8][4], float scale, Rows base) {
  Rows sum{0, 0};
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    const float from = i % 4 < 2 ? -base.a : -base.b;
    const float left = exp2_fast(fmaf(s[i], scale, from)), right = exp2_fast(fmaf(s[i + 1], scale, from));
    (i % 4 < 2 ? sum.a : sum.b) += left + right;
    weights[i / 8][i / 2 % 4] = narrow_pair<Format::half>(left, right);
  }
  return sum;
}

// --- storing ---

// x[i] of lane l of a quad becomes x[l] of lane i.
__device__ inline void transpose_quad(uint32_t (&x)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const auto exchange = [](uint32_t& low, uint32_t& up, bool upper, int distance) {
    const uint32_t other = __shfl_xor_sync(~0u, upper ? low : up, distance);
    if (upper) {
      low = other;
    } else {
      up = other;
    }
  };
  exchange(x[0], x[1], odd, 1);
  exchange(x[2], x[3], odd, 1);
  exchange(x[0], x[2], high, 2);
  exchange(x[1], x[3], high, 2);
}

// Store the first `rows` rows of a tile: thread values d (64 x kHead results), times a factor for each row. The four threads of
// a row exchange what they hold, so that each stores 16 neighbouring bytes at a time. `out` is the place of the first element.
template <int kHead, Format kFormat>
__device__ inline void store_tile(Stored<kFormat>* out, int pitch, const float (&d)[kHead / 2], Rows factor, int rows) {
  const int quad = threadIdx.x % 4, row = threadIdx.x % kGroup / kWarp * 16 + threadIdx.x % kWarp / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float f = half == 0 ? factor.a : factor.b;
    const bool exists = row + 8 * half < rows;
    Stored<kFormat>* to = out + static_cast<size_t>(row + 8 * half) * pitch;
    const auto pair = [&](int j) { return narrow_pair<kFormat>(d[4 * j + 2 * half] * f, d[4 * j + 2 * half + 1] * f); };
    if constexpr (kFormat == Format::half) {
#pragma unroll
      for (int j = 0; j < kHead / 8; j += 4) {  // columns 8 j to 8 j + 31
        uint32_t x[4] = {pair(j), pair(j + 1), pair(j + 2), pair(j + 3)};
        transpose_quad(x);
        if (exists) *reinterpret_cast<uint4*>(to + 8 * (j + quad)) = make_uint4(x[0], x[1], x[2], x[3]);
      }
    } else if constexpr (kHead == 64) {
      uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = pair(2 * i) | static_cast<uint32_t>(pair(2 * i + 1)) << 16;
      transpose_quad(x);
      if (exists) {
        *reinterpret_cast<uint4*>(to + 16 * quad) = make_uint4(__byte_perm(x[0], x[1], 0x5410), __byte_perm(x[2], x[3], 0x5410),
                                                              __byte_perm(x[0], x[1], 0x7632), __byte_perm(x[2], x[3], 0x7632));
      }
    } else {
      static_assert(kHead == 32);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (exists) *reinterpret_cast<uint16_t*>(to + 8 * j + 2 * quad) = pair(j);
      }
    }
  }
}

}  // namespace bert::attention
