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

// One thread combines one row; loads go out eight at a time.
__device__ inline Norm combine_alone(const RowStats& stats, int row, int hidden, float eps) {
  const float2* tiles = stats.data + static_cast<size_t>(row) * stats.tiles;
  float count = 0, mean = 0, squares = 0;
  for (int first = 0; first < stats.tiles; first += 8) {
    float2 some[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i < stats.tiles) some[i] = __ldcg(tiles + first + i);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i < stats.tiles) merge(count, mean, squares, some[i], static_cast<float>(min(stats.width, hidden - (first + i) * stats.width)));
    }
  }
  return {mean, rsqrtf(squares / hidden + eps)};
}

}  // namespace bert
