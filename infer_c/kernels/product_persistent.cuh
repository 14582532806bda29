// SPDX-License-Identifier: Apache-2.0
// The persistent product: its warps, its tiles, and how a block of each lays out its shared memory.
#pragma once

#include <algorithm>

#include "product_tile.cuh"

namespace bert::persistent {

constexpr int kCluster = 2;  // 132 multiprocessors hold 66 clusters of 2, but fewer than 33 of 4
constexpr int kGroups = 2, kGroupWarps = 4;
constexpr int kConsumerWarps = kGroups * kGroupWarps;
constexpr int kSides = 2, kSideWarps = 2, kSideThreads = kSideWarps * kWarp;
constexpr int kThreads = (kConsumerWarps + 4) * kWarp;  // and a warpgroup that serves them: two warps feed the ring, two fetch `Side`
constexpr int kFeedsWeights = kConsumerWarps, kFeedsInput = kFeedsWeights + 1, kFirstSide = kFeedsInput + 1;  // its warps
constexpr int kRowBytes = 128;               // of a stage: the swizzle's width; 64 halves or 128 values of 8 bits
constexpr int kBlockBytes = 64 * kRowBytes;  // the 64 rows of one wgmma
constexpr int kSharedLimit = 232448;         // 227 KB is what a block can have

// How a block cuts the result. In turns: kBlocks x 64 rows by kColumns are a group's, and while one group finishes its tile the
// other keeps the tensor cores busy. Together: both groups multiply, each its own rows, with the same weights, and both finish.
template <int kBlocks_, int kColumns_, bool kTurns_>
struct Shape {
  static constexpr int kBlocks = kBlocks_, kColumns = kColumns_;
  static constexpr bool kTurns = kTurns_;
  static constexpr int kRows = 64 * kBlocks * (kTurns ? 1 : kGroups);  // of a tile
  static constexpr int kConsumers = kTurns ? 1 : kGroups;              // groups that read a stage
  static constexpr int kSums = kBlocks * kColumns / 2;                 // registers
  static constexpr int kFeederRegisters = kSums > 128 ? 40 : 56, kConsumerRegisters = kSums > 128 ? 232 : 224;
  static constexpr int kAhead = kSums > 128 ? 2 : kColumns / kColumnGroup;  // groups of the residual fetched while the first stages are multiplied; what registers are left for
  static constexpr int kInputBytes = kRows * kRowBytes, kStageBytes = kInputBytes + kColumns * kRowBytes;

  // What the epilogue of a tile needs besides the products, columns in the order of the results; fetched while the tile before is at work.
  struct Side {
    Norm norms[kRows];
    float4 pairs[kColumns / 2];  // ColumnPairs
    float2 factors[kColumns / 2];
  };

  static constexpr int kMostStages = 5;
  static constexpr int kRest = kSides * sizeof(Side) + 2 * (kMostStages + kSides) * 8;
  static constexpr int kStages = std::min<int>(kMostStages, (kSharedLimit - kRest) / kStageBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes + kRest;
  static_assert(kAhead % 2 == 0);  // two groups a stage
  static_assert(sm90::registers_suffice(kFeederRegisters, kConsumerRegisters, kGroups));
};

}  // namespace bert::persistent
