// SPDX-License-Identifier: Apache-2.0
// The end of a tile in the persistent Hopper product: a warp holds 16 rows by kTile columns of sums in the registers of wgmma's
// results, finishes and stores them. Of every 32 columns of the result a thread holds 8 neighbours of each of its two rows, because
// the copy engine brings the weights in that order (grouped_map): it reads residuals and writes results 16 bytes at a time without
// an exchange, for which the other group's products leave shared memory no bandwidth.
#pragma once

#include <type_traits>

#include "product_epilogue.cuh"
#include "wgmma.cuh"

namespace bert {

// A thread's residuals of 32 columns: 8 of its first row, 8 of its second.
using GroupResidual = uint4[2];

// `row` and `column`: the thread's first.
__device__ inline void load_residual(GroupResidual& lines, const Product& p, int row, int column, int rows) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const bool real = row + 8 * r < rows && column < p.columns;
    lines[r] = real ? __ldcg(reinterpret_cast<const uint4*>(p.residual + static_cast<size_t>(row + 8 * r) * p.columns + column)) : uint4{};
  }
}

// Fetch group `g` of a warp's rows of a tile, which begins at (first_row, first_column).
__device__ inline void load_residual_group(GroupResidual& lines, const Product& p, int first_row, int first_column, int g, int rows) {
  const int lane = threadIdx.x % kWarp;
  load_residual(lines, p, first_row + lane / 4, first_column + g * kColumnGroup + lane % 4 * 8, rows);
}

// The first kAhead groups.
template <int kAhead>
__device__ inline void load_residuals(GroupResidual (&residual)[kAhead], const Product& p, int first_row, int first_column, int rows) {
#pragma unroll
  for (int g = 0; g < kAhead; ++g) load_residual_group(residual[g], p, first_row, first_column, g, rows);
}

// What the columns of a tile need, for two neighbours at a time, in the order of wgmma's results.
struct ColumnPairs {
  const float4* values;   // (columns / 2,) bias and factor in FP16, scale and bias in 8 bits
  const float2* factors;  // (columns / 2,) in 8 bits
};

// Where the columns 2 i and 2 i + 1 of a tile are among its results, divided by 2: pair k of a thread's four lies 8 columns after pair k - 1.
__device__ inline int place_of_pair(int i) { return i / 16 * 16 + i % 4 * 4 + i / 4 % 4; }

__device__ inline float4 pair_values(Format format, const float2& scale, const float2& bias, const float2& factor) {
  return format == Format::half ? make_float4(bias.x, bias.y, factor.x, factor.y) : make_float4(scale.x, scale.y, bias.x, bias.y);
}

// Mean and squared deviations of this thread's two rows (`row` and 8 below) over the tile; acc: the values as stored, sum: this thread's.
template <int kTile>
__device__ inline void write_tile_stats(const float (&acc)[kTile / 2], sm90::Rows sum, const Product& p, int row, int first_column, int rows) {
  const int lane = threadIdx.x % kWarp, width = min(kTile, p.columns - first_column);
  sum = sm90::quad_sum(sum);
  const sm90::Rows mean{sum.a / width, sum.b / width};
  sm90::Rows squares{};
#pragma unroll
  for (int j = 0; j < kTile / 8; ++j) {
    const float* d = acc + 4 * j;
    if (j / 4 * kColumnGroup + lane % 4 * 8 < width) {  // width is a multiple of 8
      squares.a += (d[0] - mean.a) * (d[0] - mean.a) + (d[1] - mean.a) * (d[1] - mean.a);
      squares.b += (d[2] - mean.b) * (d[2] - mean.b) + (d[3] - mean.b) * (d[3] - mean.b);
    }
  }
  squares = sm90::quad_sum(squares);
  if (lane % 4 == 0) {
    float2* to = p.out_stats.data + static_cast<size_t>(row) * p.out_stats.tiles + first_column / kTile;
    if (row < rows) to[0] = make_float2(mean.a, squares.a);
    if (row + 8 < rows) to[8 * p.out_stats.tiles] = make_float2(mean.b, squares.b);
  }
}

// The warp's rows are first_row and the 15 after it, and those 64, 128 ... below for further blocks; `norms` begin with the first.
// residual: the first kAhead groups of the first block. kBatch: pairs of columns whose values are fetched at once.
template <Format kFormat, Epilogue kEpilogue, int kBlocks, int kTile, int kAhead, int kBatch>
__device__ void finish_tile(sm90::Sum<kFormat> (&acc)[kBlocks][kTile / 2], GroupResidual (&residual)[kAhead], const Product& p, const Norm* norms,
                            const ColumnPairs& columns, int first_row, int first_column, int rows) {
  constexpr bool kResidual = kEpilogue == Epilogue::residual, kStats = kWritesStats<kFormat, kEpilogue>;
  constexpr bool kFactors = kFormat != Format::half && has_norms(kEpilogue);
  constexpr int kPairs = kColumnGroup / 8;  // of a thread's columns in a group
  // Columns' values come from shared memory one batch ahead. All blocks use them while they are there, but for residuals, which
  // would want more registers.
  constexpr int kBatches = kTile / 8 / kBatch, kTogether = kResidual ? 1 : kBlocks;
  static_assert(kTile % kColumnGroup == 0 && kPairs % kBatch == 0 && kAhead <= kTile / kColumnGroup);
  const int lane = threadIdx.x % kWarp;
  const int row0 = lane / 4, quad = lane % 4;  // the results' layout, wgmma.cuh
  float4 values[2][kBatch];
  float2 factors[2][kBatch];
  const auto load_values = [&](int batch) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int at = (batch * kBatch + k) * 4 + quad;
      values[batch % 2][k] = columns.values[at];
      factors[batch % 2][k] = kFactors ? columns.factors[at] : float2{};
    }
  };
#pragma unroll
  for (int block = 0; block < kBlocks; block += kTogether) {
    Norm norm0[kTogether]{}, norm1[kTogether]{};
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      if (has_norms(kEpilogue)) norm0[t] = norms[(block + t) * 64 + row0], norm1[t] = norms[(block + t) * 64 + row0 + 8];
    }
    if (kResidual && block > 0) load_residuals(residual, p, first_row + block * 64, first_column, rows);
    sm90::Rows sum{};
    load_values(0);
#pragma unroll
    for (int g = 0; g < kTile / kColumnGroup; ++g) {
      if (first_column + g * kColumnGroup >= p.columns) break;
      const int column = first_column + g * kColumnGroup + quad * 8;
      const auto finish_group = [&](auto stored) {
        constexpr Format kOut = decltype(stored)::value;
        Pair<kOut> out[kTogether][2][kPairs];  // by row
#pragma unroll
        for (int k = 0; k < kPairs; ++k) {
          const int j = g * kPairs + k, batch = j / kBatch;
          if (j % kBatch == 0 && batch + 1 < kBatches) load_values(batch + 1);
          float2 x[2]{};
          if constexpr (kResidual) {
#pragma unroll
            for (int r = 0; r < 2; ++r) x[r] = __half22float2(reinterpret_cast<const __half2*>(&residual[g % kAhead][r])[k]);
          }
          const float4 v = values[batch % 2][j % kBatch];
          const float2 f = factors[batch % 2][j % kBatch];
          const Column left = kFormat == Format::half ? Column{1.f, v.x, v.z} : Column{v.x, v.z, f.x};
          const Column right = kFormat == Format::half ? Column{1.f, v.y, v.w} : Column{v.y, v.w, f.y};
#pragma unroll
          for (int t = 0; t < kTogether; ++t) {
            auto* d = acc[block + t] + 4 * j;
            out[t][0][k] = finish_pair<kFormat, kEpilogue, kOut>(d[0], d[1], left, right, norm0[t], x[0], p.inverse_scale);
            out[t][1][k] = finish_pair<kFormat, kEpilogue, kOut>(d[2], d[3], left, right, norm1[t], x[1], p.inverse_scale);
            if constexpr (kStats) {
              // Of the values as stored. Columns past the end are exactly 0: zero weights, and zero bias and factor.
              const float2 f0 = __half22float2(reinterpret_cast<const __half2&>(out[t][0][k])), f1 = __half22float2(reinterpret_cast<const __half2&>(out[t][1][k]));
              d[0] = f0.x, d[1] = f0.y, d[2] = f1.x, d[3] = f1.y;
              sum.a += f0.x + f0.y;
              sum.b += f1.x + f1.y;
            }
          }
        }
        if constexpr (kResidual) {
          if (g + kAhead < kTile / kColumnGroup) load_residual(residual[g % kAhead], p, first_row + block * 64 + row0, column + kAhead * kColumnGroup, rows);
        }
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int row = first_row + (block + t) * 64 + row0 + r * 8;
            if (row >= rows || column >= p.columns) continue;
            Stored<kOut>* to = results_of<kEpilogue, kOut>(p) + row_offset<kEpilogue, kOut>(p, row) + column;
            const auto& o = out[t][r];
            if constexpr (kOut == Format::half) {
              *reinterpret_cast<uint4*>(to) = make_uint4(o[0], o[1], o[2], o[3]);
            } else {
              *reinterpret_cast<uint2*>(to) = make_uint2(o[0] | static_cast<uint32_t>(o[1]) << 16, o[2] | static_cast<uint32_t>(o[3]) << 16);
            }
          }
        }
      };
      if (kEpilogue == Epilogue::bias && first_column + g * kColumnGroup < p.narrow_columns) {
        finish_group(std::integral_constant<Format, Format::fp8>());
      } else {
        finish_group(std::integral_constant<Format, kOutFormat<kFormat, kEpilogue>>());
      }
    }
    if constexpr (kStats) write_tile_stats<kTile>(acc[block], sum, p, first_row + block * 64 + row0, first_column, rows);
  }
}

}  // namespace bert
