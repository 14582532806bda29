// SPDX-License-Identifier: Apache-2.0
// Which tiles of queries a block of the stream attention takes: an equal share of the launch's work, found by each block for itself
// from the lengths on the device, and a walk over it.
#pragma once

#include <cstdint>

#include "attention_sm90.cuh"

namespace bert::attention {

// A tile of 64 queries of a head of a sequence.
struct Position {
  int sequence, head, tile;

  __device__ bool before(const Position& other) const {
    if (sequence != other.sequence) return sequence < other.sequence;
    return head != other.head ? head < other.head : tile < other.tile;
  }
};

// Walks over the heads of sequences in a block's share, of the first and the last of which it may have some tiles only; empty
// sequences have none.
struct Share {
  const int* cu_seqlens;
  int heads;
  Position at, end;
  int first, length;  // of the sequence

  __device__ bool done() const { return !at.before(end); }
  __device__ int boxes() const { return (length + kTile - 1) / kTile; }
  __device__ int tiles() const { return (at.sequence == end.sequence && at.head == end.head ? end.tile : boxes()) - at.tile; }
  __device__ void load() {
    for (; !done(); ++at.sequence) {
      first = cu_seqlens[at.sequence];
      length = cu_seqlens[at.sequence + 1] - first;
      if (length > 0) return;
    }
  }
  __device__ void next() {
    at.tile = 0;
    if (++at.head < heads) return;
    at.head = 0;
    ++at.sequence;
    load();
  }
};

// What each tile of queries costs: the boxes of keys that it goes over, and its own fetching and storing.
__device__ inline int tile_cost(int boxes) { return boxes + 2; }

// The whole block finds its share: from the tile in which its part of the total begins to the one in which the next block's part
// does. `bounds` receives both; `sums` is scratch of one int a warp.
__device__ inline void find_share(const int* cu_seqlens, int batch, int heads, Position* bounds, int* sums) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const auto boxes_of = [&](int s) { return (cu_seqlens[s + 1] - cu_seqlens[s] + kTile - 1) / kTile; };
  const auto cost_of = [](int boxes) { return boxes * tile_cost(boxes); };  // of a head
  int total = 0;
  for (int s = threadIdx.x; s < batch; s += blockDim.x) total += cost_of(boxes_of(s));
  total = warp_sum(total);
  if (lane == 0) sums[warp] = total;
  if (threadIdx.x < 2) bounds[threadIdx.x] = {batch, 0, 0};
  __syncthreads();
  total = 0;
  for (int i = 0; i < warps; ++i) total += sums[i];
  const int begin = static_cast<int>(static_cast<int64_t>(total) * heads * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(static_cast<int64_t>(total) * heads * (blockIdx.x + 1) / gridDim.x);
  for (int start = 0, carry = 0; start < batch; start += blockDim.x) {  // once for batches up to the block's threads
    const int s = start + threadIdx.x, boxes = s < batch ? boxes_of(s) : 0, cost = cost_of(boxes);
    int before = cost;
#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
      const int other = __shfl_up_sync(~0u, before, i);
      if (lane >= i) before += other;
    }
    __syncthreads();
    if (lane == kWarp - 1) sums[warp] = before;
    __syncthreads();
    before += carry - cost;
    for (int i = 0; i < warps; ++i) {
      if (i < warp) before += sums[i];
      carry += sums[i];
    }
    const auto place = [&](int at, Position& bound) {
      const int offset = at - before * heads;
      if (offset >= 0 && offset < cost * heads) bound = {s, offset / cost, offset % cost / tile_cost(boxes)};
    };
    place(begin, bounds[0]);
    place(end, bounds[1]);
  }
  __syncthreads();
}

}  // namespace bert::attention
