// SPDX-License-Identifier: Apache-2.0
// Hopper attention for many sequences. One block a multiprocessor stays for the whole launch and takes an equal share of the
// work, cut between tiles of queries. One warp fetches keys and values through a ring of boxes, ahead of their use and
// across the ends of sequences; another fetches the queries. Four warpgroups take 64 queries at a time, in turn, and walk over
// the keys 64 at a time with online softmax; while one computes exponentials, others have the tensor cores. (Queries stay in
// shared memory: as a loop-invariant register operand, ptxas 13.0 overwrites them with the weights.)
#include <algorithm>

#include "attention_share.cuh"
#include "attention_sm90.cuh"
#include "launch.h"

namespace bert::attention {

constexpr int kGroups = 4;
constexpr int kFetcher = kGroups * kGroup / kWarp;  // the first of two warps
constexpr int kThreads = (kGroups + 1) * kGroup;    // the fetchers' warpgroup gives registers to the others
constexpr int kFetcherRegisters = 32, kGroupRegisters = 112;
static_assert(sm90::registers_suffice(kFetcherRegisters, kGroupRegisters, kGroups));
constexpr float kMostWeight = 16384;  // half the largest power of 2 in FP16

// Shared memory: a ring of kSlots boxes of keys and values, two tiles of queries for each warpgroup, barriers.
template <int kHead, Format kFormat>
struct Layout {
  static constexpr int kQueryBox = kTile * kKeyRow<kHead, kFormat>, kKeyBox = kQueryBox, kValueBox = kTile * kValueRow<kHead>, kSlot = kKeyBox + kValueBox;
  static constexpr int kSpace = 227 * 1024, kBarriers = 512, kQueries = kGroups * 2 * kQueryBox;
  static constexpr int kSlots = std::min((kSpace - kBarriers - kQueries) / kSlot, 16);
  static constexpr size_t kBytes = kSlots * kSlot + kQueries + kBarriers;
  static_assert(kSlots >= kMaxBoxes, "warpgroups go over all keys of a sequence before they let the first go");
  char* base;
  __device__ char* keys(int slot) const { return base + slot * kSlot; }
  __device__ char* values(int slot) const { return keys(slot) + kKeyBox; }
  __device__ char* queries(int group, int turn) const { return keys(kSlots) + (2 * group + turn % 2) * kQueryBox; }
  __device__ uint64_t* barriers() const { return reinterpret_cast<uint64_t*>(keys(kSlots) + kQueries); }
  __device__ uint64_t* full(int slot) const { return barriers() + slot; }
  __device__ uint64_t* empty(int slot) const { return barriers() + kSlots + slot; }
  __device__ uint64_t* query_full(int group, int turn) const { return barriers() + 2 * kSlots + 4 * group + turn % 2; }
  __device__ uint64_t* query_empty(int group, int turn) const { return query_full(group, turn) + 2; }
};

// A box's place in the ring.
struct Place {
  int slot, phase;  // parity of the slot's use

  template <int kSlots>
  __device__ void next() {
    if (++slot == kSlots) slot = 0, phase ^= 1;
  }
};

// One thread fetches keys and values, box after box.
template <int kHead, Format kFormat>
__device__ inline void fetch_keys(const CUtensorMap& key_map, const CUtensorMap& value_map, int value_column, const Layout<kHead, kFormat>& space, Share share,
                                  int hidden) {
  constexpr int kSlots = Layout<kHead, kFormat>::kSlots;
  int box = 0;
  for (; !share.done(); share.next()) {
    const int boxes = share.boxes(), column = share.at.head * kHead;
    for (int step = 0; step < boxes; ++step, ++box) {
      const int slot = box % kSlots;
      if (box >= kSlots) sm90::wait(space.empty(slot), (box / kSlots + 1) & 1);
      sm90::expect_bytes(space.full(slot), space.kSlot);
      sm90::load_box(space.keys(slot), &key_map, hidden + column, share.first + step * kTile, space.full(slot));
      sm90::load_box(space.values(slot), &value_map, value_column + column, share.first + step * kTile, space.full(slot));
    }
  }
}

// One thread fetches tiles of queries, to the warpgroups in turn.
template <int kHead, Format kFormat>
__device__ inline void fetch_queries(const CUtensorMap& map, const Layout<kHead, kFormat>& space, Share share) {
  int group = 0, turn = 0;
  for (; !share.done(); share.next()) {
    const int tiles = share.tiles();
    for (int tile = 0; tile < tiles; ++tile) {
      uint64_t* full = space.query_full(group, turn);
      if (turn >= 2) sm90::wait(space.query_empty(group, turn), (turn / 2 + 1) & 1);
      sm90::expect_bytes(full, space.kQueryBox);
      sm90::load_box(space.queries(group, turn), &map, share.at.head * kHead, share.first + (share.at.tile + tile) * kTile, full);
      if (++group == kGroups) group = 0, ++turn;
    }
  }
}

namespace {

template <int kHead, Format kFormat>
__global__ void __launch_bounds__(kThreads, 1)
    attention_stream_kernel(const __grid_constant__ AttentionMaps maps, Stored<kFormat>* context, AttentionScales scales, const int* cu_seqlens, int batch,
                            int heads) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using Space = Layout<kHead, kFormat>;
  constexpr int kSlots = Space::kSlots;
  extern __shared__ __align__(1024) char shared[];
  __shared__ Position bounds[2];
  __shared__ int sums[kWarp];
  const Space space{shared};
  const int warp = warp_index(), hidden = heads * kHead;
  const bool elected = threadIdx.x % kWarp == 0;

  let_next_start();
  static_assert(kSlots <= kFetcher && 2 * kGroups <= kFetcher);
  if (elected && warp < kFetcher) {  // side by side
    if (warp < kSlots) {
      sm90::barrier_init(space.full(warp), 1);
      sm90::barrier_init(space.empty(warp), kGroups * kGroup / kWarp);
    }
    if (warp < 2 * kGroups) {
      sm90::barrier_init(space.query_full(warp / 2, warp), 1);
      sm90::barrier_init(space.query_empty(warp / 2, warp), kGroup / kWarp);
    }
    sm90::barrier_init_fence();
  } else if (elected && warp == kFetcher) {
    sm90::prefetch_map(&maps.query_key);
    sm90::prefetch_map(&maps.value);
  }
  __syncwarp();
  find_share(cu_seqlens, batch, heads, bounds, sums);
  Share share{cu_seqlens, heads, bounds[0], bounds[1], 0, 0};
  share.load();
  wait_for_previous();
  if (warp >= kFetcher) {
    sm90::give_registers<kFetcherRegisters>();
    if (elected && warp == kFetcher) fetch_keys(maps.query_key, maps.value, maps.value_column, space, share, hidden);
    if (elected && warp == kFetcher + 1) fetch_queries(maps.query_key, space, share);
    return;
  }

  sm90::take_registers<kGroupRegisters>();
  const int group = warp / (kGroup / kWarp);
  const float scale = score_scale<kHead>() * scales.score;
  constexpr int kKeyRow = attention::kKeyRow<kHead, kFormat>, kValueRow = attention::kValueRow<kHead>;
  constexpr uint64_t kSlotStep = Space::kSlot / 16;  // between descriptors
  const uint64_t keys = sm90::descriptor<kKeyRow>(space.keys(0)), values = sm90::descriptor<kValueRow>(space.values(0));
  Place start{0, 0};  // of the sequence's first box
  int turn = 0, tile = group;  // tile: this group's next one of those that the block has of the head
  for (; !share.done(); share.next()) {
    const int tiles = share.tiles(), boxes = share.boxes();
    const auto ready = [&](const Place& at) { sm90::wait(space.full(at.slot), at.phase); };
    const auto release = [&](const Place& at) {
      if (elected) sm90::arrive(space.empty(at.slot));
    };
    if (tile >= tiles) {  // none: pass the boxes on. Only once they are full, or the arrival would count for the use before
      Place at = start;
      for (int step = 0; step < boxes; ++step, at.next<kSlots>()) {
        ready(at);
        __syncwarp();  // the lane that gives it back may not be ahead of the others
        release(at);
      }
    }
    for (; tile < tiles; tile += kGroups, ++turn) {
      const bool last_use = tile + kGroups >= tiles;
      float s[kTile / 2], out[kHead / 2];
#pragma unroll
      for (int i = 0; i < kHead / 2; ++i) out[i] = 0.f;
      Rows most{-INFINITY, -INFINITY}, sum{0, 0};
      Place at = start;
      sm90::wait(space.query_full(group, turn), turn / 2 & 1);
      const uint64_t queries = sm90::descriptor<kKeyRow>(space.queries(group, turn));
      const auto ask = [&](auto& s) {
        ready(at);
        sm90::multiply_box<kKeyRow / 32, 2 * std::extent_v<std::remove_reference_t<decltype(s)>>, kKeyFormat<kFormat>>(s, queries, keys + at.slot * kSlotStep, false);
      };
      // Weigh the scores of a box and begin to add its values up.
      const auto walk_over = [&](auto& s, int step) {
        constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(s)>>, kKeys = 2 * kCount;
        if (step * kTile + kKeys > share.length) mask(s, share.length - step * kTile);
        // The first box gives the rows their base. Others need no maximum while no weight becomes too large for FP16, which the
        // sums tell: rescaling is for the rare row that outgrows its first scores.
        uint32_t weights[kKeys / 16][4];
        if (step == 0) most = row_max(s, most);
        Rows part = weigh(s, weights, scale, {most.a * scale, most.b * scale});
        if (__any_sync(~0u, !(part.a <= kMostWeight && part.b <= kMostWeight))) {
          const Rows now = row_max(s, most);
          const Rows shrink{exp2_fast((most.a - now.a) * scale), exp2_fast((most.b - now.b) * scale)};
          most = now;
          sum.a *= shrink.a, sum.b *= shrink.b;
#pragma unroll
          for (int i = 0; i < kHead / 2; i += 4) {
            out[i] *= shrink.a, out[i + 1] *= shrink.a;
            out[i + 2] *= shrink.b, out[i + 3] *= shrink.b;
          }
          part = weigh(s, weights, scale, {most.a * scale, most.b * scale});
        }
        sum.a += part.a, sum.b += part.b;

        sm90::pin(out);
        sm90::multiply_fence();
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
          sm90::multiply_registers<kHead, true>(out, weights[k], values + at.slot * kSlotStep + k * (16 * kValueRow / 16), true);
        }
        sm90::multiply_commit();
        sm90::pin(out);
      };
      // Of a last box with no more than half as many keys only that half is multiplied. Its scores are asked for when the others are done:
      // before, ptxas 13.0 would run all multiplications one by one.
      const int whole = boxes - (boxes > 1 && share.length - (boxes - 1) * kTile <= kTile / 2);
      ask(s);
      sm90::multiply_wait<0>();
      sm90::pin(s);
      for (int step = 0; step < whole; ++step) {
        walk_over(s, step);
        const Place used = at;
        at.next<kSlots>();
        if (step + 1 < whole) ask(s);  // the next scores at once, so that the group waits but once
        sm90::multiply_wait<0>();
        sm90::pin(s);
        sm90::pin(out);
        if (last_use) release(used);
      }
      if (whole < boxes) {
        float few[kTile / 4];
        ask(few);
        sm90::multiply_wait<0>();
        sm90::pin(few);
        walk_over(few, whole);
        sm90::multiply_wait<0>();
        sm90::pin(out);
        if (last_use) release(at);
      }
      if (elected) sm90::arrive(space.query_empty(group, turn));
      sum = sm90::quad_sum(sum);
      const int row = (share.at.tile + tile) * kTile;
      store_tile<kHead, kFormat>(context + static_cast<size_t>(share.first + row) * hidden + share.at.head * kHead, hidden, out,
                                 {__fdividef(scales.inverse_context, sum.a), __fdividef(scales.inverse_context, sum.b)}, share.length - row);
    }
    for (int step = 0; step < boxes; ++step) start.next<kSlots>();
    tile -= tiles;
  }
#endif
}

template <int kHead, Format kFormat>
void start(cudaStream_t stream, const AttentionMaps& maps, void* context, const AttentionScales& scales, const int* cu_seqlens, const AttentionShape& shape,
           int multiprocessors) {
  constexpr auto kernel = attention_stream_kernel<kHead, kFormat>;
  static std::atomic<unsigned long long> allowed{0};
  constexpr size_t kBytes = Layout<kHead, kFormat>::kBytes;
  allow_shared_once(kernel, kBytes, allowed);
  Launch launch_shape{dim3(std::min(shape.heads * shape.batch, multiprocessors)), dim3(kThreads), kBytes};
  launch_shape.overlap = true;
  launch(stream, launch_shape, kernel, maps, static_cast<Stored<kFormat>*>(context), scales, cu_seqlens, shape.batch, shape.heads);
}

}  // namespace

void run_stream(cudaStream_t stream, const AttentionMaps& maps, void* context, Format format, const AttentionScales& scales, const int* cu_seqlens,
                const AttentionShape& shape, int multiprocessors) {
  with_constants(shape.head_size, format, [&](auto head, auto stored) {
    start<decltype(head)::value, decltype(stored)::value>(stream, maps, context, scales, cu_seqlens, shape, multiprocessors);
  });
}

}  // namespace bert::attention
