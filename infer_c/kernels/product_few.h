// SPDX-License-Identifier: Apache-2.0
// The product for few rows: which kernels are compiled, and how a launch of one lays out its shared memory.
#pragma once

#include <cuda_runtime.h>

#include "product_sm90.h"

namespace bert {

constexpr int kLineBytes = 128;  // of a box's row: the swizzle's width; 64 halves or 128 values of 8 bits
constexpr int kMaxStages = 16;
constexpr int kFeeders = 2;      // warps: one for weights, one for input

// A tile, and how many blocks share its depth.
struct Cut {
  int rows, columns, split;
  bool half_sums = false;  // Variant::half_sums

  __host__ __device__ constexpr bool operator==(const Cut& o) const {
    return rows == o.rows && columns == o.columns && split == o.split && half_sums == o.half_sums;
  }
  __host__ __device__ constexpr int stage_bytes() const { return (rows + columns) * kLineBytes; }
  // Sums of all blocks that one of them receives: of 1 / split of the tile, from each; in FP16 of 16 columns at a time.
  __host__ __device__ constexpr int received_bytes() const { return split > 1 ? rows * (half_sums ? 2 * round_up(columns, 16) : 4 * columns) : 0; }
  // Scale, bias and factor of the columns, and the barriers.
  __host__ __device__ constexpr int side_bytes() const { return 3 * columns * 4 + (2 * kMaxStages + 2) * 8; }
};

// FP16: narrow tiles and much splitting for 128 rows, wide tiles for 1,024. At 384 rows tiles of 128 x 72 cut 3,072 columns into 129 blocks,
// and four parts of 128 x 104 cut 1,024 into 30 clusters, of which 32 fit on 132 multiprocessors at once.
inline constexpr Cut kHalfCuts[] = {
    {64, 48, 1},        {64, 48, 4},   {64, 64, 1},        {64, 64, 2},   {64, 64, 4},    {64, 72, 1},         {64, 96, 1},
    {128, 48, 2},       {128, 48, 4},  {128, 64, 1},       {128, 64, 2},  {128, 64, 4, true}, {128, 72, 1},
    {128, 96, 1},       {128, 96, 2},  {128, 96, 4, true}, {128, 104, 4, true}, {128, 128, 1}, {128, 128, 2}, {128, 128, 4, true},
    {192, 64, 2},       {192, 96, 1},  {192, 96, 2, true}, {192, 128, 1}, {192, 128, 2, true},
    {256, 64, 2},       {256, 96, 1},  {256, 128, 1},
};
// 8 bits: half as many boxes, so less splitting.
inline constexpr Cut kEightBitCuts[] = {
    {64, 48, 1},  {64, 64, 1},  {64, 64, 2},  {64, 64, 4},   {64, 96, 1},  {128, 48, 2},  {128, 48, 4}, {128, 64, 1},  {128, 64, 2},
    {128, 64, 4}, {128, 96, 1}, {128, 96, 2}, {128, 128, 1}, {128, 128, 2}, {192, 96, 1}, {192, 128, 1}, {256, 128, 1},
};

template <Format kFormat>
constexpr auto& few_cuts() {
  if constexpr (kFormat == Format::half) {
    return kHalfCuts;
  } else {
    return kEightBitCuts;
  }
}

// What a launch decides beside the Cut.
struct FewLaunch {
  int share, pair, early, prefetch;
  int stages;  // of the ring; 0: the variant does not fit
  int reuse;   // received sums take the place of the stages
  int input_part, weights_part;       // rows of a box that a block fetches, for itself and for its peers
  unsigned input_mask, weights_mask;  // those peers, from the first of them on: a bit for each block of the cluster
};

Cut cut_of(const Variant& variant);
FewLaunch few_launch(const Variant& variant, int boxes);

// What a block needs first stands first: parameters come from memory a line at a time.
using FewKernel = void (*)(FewLaunch, Product, CUtensorMap, CUtensorMap);

// The kernel of a Cut; nullptr where there is none. Each pair of format and epilogue is a source file of its own (product_few.cu.in).
template <Format kFormat, Epilogue kEpilogue>
FewKernel few_kernel(const Cut& cut);

}  // namespace bert
