// SPDX-License-Identifier: Apache-2.0
// The end of a tile in the persistent Hopper products: a warp holds 16 rows by kTile columns of sums in the registers of wgmma's
// results and finishes, converts and stores them in whole lines.
#pragma once

#include "product_epilogue.cuh"
#include "wgmma.cuh"

namespace bert {

constexpr int kPitch = 128 + 16;          // bytes of a row in a warp's buffer; + 16 keeps accesses apart
constexpr int kChunkBytes = 16 * kPitch;  // a warp's buffer
constexpr int kLines = 4;                 // 16-byte accesses a thread for 16 rows by 128 bytes

// Fetch a warp's 16 x 64 values of the residual, whole lines.
__device__ inline void load_residual(uint4 (&lines)[kLines], const Product& p, int first_row, int first_column, int rows) {
  const int lane = threadIdx.x % kWarp, column = first_column + lane % 8 * 8;
#pragma unroll
  for (int i = 0; i < kLines; ++i) {
    const int row = first_row + i * 4 + lane / 8;
    lines[i] = row < rows && column < p.columns ? __ldcg(reinterpret_cast<const uint4*>(p.residual + static_cast<size_t>(row) * p.columns + column)) : uint4{};
  }
}

// Fetch the first kAhead chunks of a tile kTile columns wide.
template <int kTile, int kAhead>
__device__ inline void load_residuals(uint4 (&residual)[kAhead][kLines], const Product& p, int first_row, int first_column, int rows) {
  static_assert(kTile % 64 == 0 && kAhead <= kTile / 64);
#pragma unroll
  for (int c = 0; c < kAhead; ++c) load_residual(residual[c], p, first_row, first_column + 64 * c, rows);
}

// What the columns of a tile need, for two columns at a time.
struct ColumnPairs {
  const float4* values;   // (columns / 2,) bias and factor in FP16, scale and bias in 8 bits
  const float2* factors;  // (columns / 2,) in 8 bits
};

__device__ inline float4 pair_values(Format format, const float2& scale, const float2& bias, const float2& factor) {
  return format == Format::half ? make_float4(bias.x, bias.y, factor.x, factor.y) : make_float4(scale.x, scale.y, bias.x, bias.y);
}

// Mean and squared deviations of this thread's two rows (`row` and 8 below) over the tile; acc: the values as stored, sum: this thread's.
template <int kTile>
__device__ inline void write_tile_stats(const float (&acc)[kTile / 2], sm90::Rows sum, const Product& p, int row, int first_column, int rows) {
  const int lane = threadIdx.x % kWarp, pair = 2 * (lane % 4), width = min(kTile, p.columns - first_column);
  sum = sm90::quad_sum(sum);
  const sm90::Rows mean{sum.a / width, sum.b / width};
  sm90::Rows squares{};
#pragma unroll
  for (int j = 0; j < kTile / 8; ++j) {
    const float* d = acc + 4 * j;
    if (j * 8 + pair < width) {  // width is a multiple of 8
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

// Rows go through shared memory (`buffer`, kChunkBytes) 128 bytes at a time, so that the residual is read and the output written
// in whole lines. The warp's rows are first_row and the 15 after it, and those 64, 128 ... below for further blocks; `norms` begin
// with the first. residual: the first kAhead chunks of the first block.
template <Format kFormat, Epilogue kEpilogue, int kBlocks, int kTile, int kAhead, int kBatch>
__device__ void finish_tile(sm90::Sum<kFormat> (&acc)[kBlocks][kTile / 2], uint4 (&residual)[kAhead][kLines], const Product& p, const Norm* norms,
                            const ColumnPairs& columns, char* buffer, int first_row, int first_column, int rows) {
  using Out = Stored<kOutFormat<kFormat, kEpilogue>>;
  using OutPair = Pair<kOutFormat<kFormat, kEpilogue>>;
  constexpr bool kResidual = kEpilogue == Epilogue::residual, kStats = kWritesStats<kFormat, kEpilogue>;
  constexpr bool kFactors = kFormat != Format::half && has_norms(kEpilogue);
  // Columns handled at a time: of 128 bytes, or of 96 where that does not divide the tile.
  constexpr int kChunk = (kTile % (128 / sizeof(Out)) == 0 ? 128 : 96) / sizeof(Out), kVectors = kChunk * sizeof(Out) / 16, kAccesses = kVectors / 2;
  static_assert(kTile % kChunk == 0 && (!kResidual || kVectors == 8));
  // Columns' values come from shared memory for kBatch x 8 columns at once, one batch ahead: one by one, each waits for the last
  // one's result to be stored. All blocks use them while they are there, but for residuals, which need the buffer first.
  constexpr int kBatches = kTile / 8 / kBatch, kChunkBatches = kChunk / 8 / kBatch, kTogether = kResidual ? 1 : kBlocks;
  static_assert(kChunk % (8 * kBatch) == 0);
  const int lane = threadIdx.x % kWarp;
  const int row0 = lane / 4, pair = 2 * (lane % 4);  // the results' layout, wgmma.cuh
  char* const place = buffer + row0 * kPitch + pair * sizeof(Out);
  const auto put = [&](int j, OutPair first, OutPair second) {
    *reinterpret_cast<OutPair*>(place + j * 8 * sizeof(Out)) = first, *reinterpret_cast<OutPair*>(place + j * 8 * sizeof(Out) + 8 * kPitch) = second;
  };
  float4 values[2][kBatch];
  float2 factors[2][kBatch];
  const auto load_values = [&](int batch) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int at = ((batch * kBatch + k) * 8 + pair) / 2;
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
    if (kResidual && block > 0) load_residuals<kTile>(residual, p, first_row + block * 64, first_column, rows);
    sm90::Rows sum{};
    load_values(0);
#pragma unroll
    for (int c = 0; c < kTile / kChunk; ++c) {
      if (first_column + c * kChunk >= p.columns) break;
      if (kResidual) {
#pragma unroll
        for (int i = 0; i < kLines; ++i) *reinterpret_cast<uint4*>(buffer + (i * 4 + lane / 8) * kPitch + lane % 8 * 16) = residual[c % kAhead][i];
        __syncwarp();
        if (c + kAhead < kTile / kChunk) load_residual(residual[c % kAhead], p, first_row + block * 64, first_column + (c + kAhead) * kChunk, rows);
      }
      OutPair out0[kTogether][kChunk / 8], out1[kTogether][kChunk / 8];
#pragma unroll
      for (int b = 0; b < kChunkBatches; ++b) {
        const int batch = c * kChunkBatches + b;
        if (batch + 1 < kBatches) load_values(batch + 1);
        float2 x0[kBatch], x1[kBatch];
        if constexpr (kResidual) {
#pragma unroll
          for (int k = 0; k < kBatch; ++k) {
            const char* at = place + (b * kBatch + k) * 8 * sizeof(Out);
            x0[k] = __half22float2(*reinterpret_cast<const __half2*>(at));
            x1[k] = __half22float2(*reinterpret_cast<const __half2*>(at + 8 * kPitch));
          }
        }
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const int j = b * kBatch + k;
          const float4 v = values[batch % 2][k];
          const float2 f = factors[batch % 2][k];
          const Column left = kFormat == Format::half ? Column{1.f, v.x, v.z} : Column{v.x, v.z, f.x};
          const Column right = kFormat == Format::half ? Column{1.f, v.y, v.w} : Column{v.y, v.w, f.y};
          const auto done = [&](auto sum, const Column& column_values, const Norm& norm, float added) {
            return finish<kFormat, kEpilogue>(sum, column_values, norm, added, p.inverse_scale);
          };
#pragma unroll
          for (int t = 0; t < kTogether; ++t) {
            auto* d = acc[block + t] + 4 * (batch * kBatch + k);
            out0[t][j] = narrow_pair<kOutFormat<kFormat, kEpilogue>>(done(d[0], left, norm0[t], x0[k].x), done(d[1], right, norm0[t], x0[k].y));
            out1[t][j] = narrow_pair<kOutFormat<kFormat, kEpilogue>>(done(d[2], left, norm1[t], x1[k].x), done(d[3], right, norm1[t], x1[k].y));
            if constexpr (kStats) {
              // Of the values as stored. Columns past the end are exactly 0: zero weights, and zero bias and factor.
              const float2 f0 = __half22float2(reinterpret_cast<const __half2&>(out0[t][j])), f1 = __half22float2(reinterpret_cast<const __half2&>(out1[t][j]));
              d[0] = f0.x, d[1] = f0.y, d[2] = f1.x, d[3] = f1.y;
              sum.a += f0.x + f0.y;
              sum.b += f1.x + f1.y;
            }
            if (t == 0) put(j, out0[0][j], out1[0][j]);
          }
        }
      }
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        if (t > 0) {
#pragma unroll
          for (int j = 0; j < kChunk / 8; ++j) put(j, out0[t][j], out1[t][j]);
        }
        __syncwarp();
        uint4 lines[kAccesses];
        constexpr bool kEven = kWarp % kVectors == 0;
        const auto line = [&](int i) { return kEven ? i * (kWarp / kVectors) + lane / kVectors : (i * kWarp + lane) / kVectors; };
        const auto vector = [&](int i) { return (kEven ? lane % kVectors : (i * kWarp + lane) % kVectors) * 16; };
#pragma unroll
        for (int i = 0; i < kAccesses; ++i) lines[i] = *reinterpret_cast<const uint4*>(buffer + line(i) * kPitch + vector(i));
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kAccesses; ++i) {
          const int row = first_row + (block + t) * 64 + line(i), column = first_column + c * kChunk + vector(i) / static_cast<int>(sizeof(Out));
          if (row < rows && column < p.columns) *reinterpret_cast<uint4*>(static_cast<Out*>(p.out) + static_cast<size_t>(row) * p.columns + column) = lines[i];
        }
      }
    }
    if constexpr (kStats) write_tile_stats<kTile>(acc[block], sum, p, first_row + block * 64 + row0, first_column, rows);
  }
}

}  // namespace bert
