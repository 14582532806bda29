// SPDX-License-Identifier: Apache-2.0
// Combines the tile statistics of a row (embedding.h) into what its LayerNorm needs.
#pragma once

#include "device.cuh"
#include "embedding.h"

namespace bert {

struct Norm {
  float mean;
  float scale;  // 1 / sqrt(variance + eps)
};

// The parallel form of the variance: squared deviations of the tiles plus those of their means; no difference of large squares.
__device__ inline void merge(float& count, float& mean, float& squares, float2 tile, float width) {
  const float total = count + width, delta = tile.x - mean, share = __fdividef(width, total);
  mean += delta * share;
  squares += tile.y + delta * delta * count * share;
  count = total;
}

// What the lane `step` away holds of the same row joins in; either may hold nothing.
__device__ inline void merge_lanes(float& count, float& mean, float& squares, int step) {
  const float other = __shfl_xor_sync(~0u, count, step);
  const float2 tile{__shfl_xor_sync(~0u, mean, step), __shfl_xor_sync(~0u, squares, step)};
  const float total = count + other, share = total > 0.f ? __fdividef(other, total) : 0.f, delta = tile.x - mean;
  mean += delta * share;
  squares += tile.y + delta * delta * count * share;
  count = total;
}

// `lanes` neighbouring threads of a warp (a power of two) combine one row, each every lanes-th tile; all get the result.
// kAtOnce: a thread's loads under way.
template <int kAtOnce = 8>
__device__ inline Norm combine(const RowStats& stats, int row, int hidden, float eps, int lanes) {
  float count = 0, mean = 0, squares = 0;
  for (int first = 0; first < stats.tiles; first += kAtOnce * lanes) {
    float2 some[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int tile = first + threadIdx.x % lanes + i * lanes;
      if (tile < stats.tiles) some[i] = __ldcg(stats.data + static_cast<size_t>(row) * stats.tiles + tile);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int tile = first + threadIdx.x % lanes + i * lanes;
      if (tile < stats.tiles) merge(count, mean, squares, some[i], static_cast<float>(min(stats.width, hidden - tile * stats.width)));
    }
  }
  for (int step = 1; step < lanes; step *= 2) merge_lanes(count, mean, squares, step);
  return {mean, rsqrtf(squares / hidden + eps)};
}

}  // namespace bert
