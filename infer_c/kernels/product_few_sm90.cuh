// SPDX-License-Identifier: Apache-2.0
// Hopper product for few rows. What limits here is latency: every block of a tile's `split` fetches its part of the depth at once,
// sends its sums to the others straight from the registers (st.async), and finishes its share of the rows; there is no second
// kernel and no barrier at the end. Neighbouring tiles of a cluster may share their input (`share`) or their weights (`pair`) by
// multicast. Where two blocks fit on a multiprocessor, the next product's blocks are there early (programmatic dependent launch)
// and fetch weights and columns' values, which never change, while this one still works.
#pragma once

#include <iterator>
#include <utility>

#include "product_few_finish.cuh"

namespace bert {

template <int kRows, int kTile, int kSplit, bool kHalfSums, Format kFormat, Epilogue kEpilogue>
__global__ void __launch_bounds__(few::Shape<kRows, kTile, kSplit, kHalfSums>::kThreads,
                                  few::Shape<kRows, kTile, kSplit, kHalfSums>::blocks(kEpilogue == Epilogue::residual))
    product_few_kernel(const __grid_constant__ CUtensorMap input, const __grid_constant__ CUtensorMap weights, const Product p, const FewLaunch launch) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using S = few::Shape<kRows, kTile, kSplit, kHalfSums>;
  using Sum = sm90::Sum<kFormat>;
  constexpr int kDepth = kLineBytes / bytes_of(kFormat);  // columns of a box
  extern __shared__ __align__(1024) char shared[];
  const int stages = launch.stages, share = launch.share, pair = launch.pair;
  char* received = launch.reuse ? shared : shared + stages * S::kStageBytes;               // (split, 1 / split of the tile)
  char* side = shared + stages * S::kStageBytes + (launch.reuse ? 0 : S::kReceivedBytes);  // scale, bias, factor of the tile's columns
  uint64_t* full = reinterpret_cast<uint64_t*>(side + S::kSideBytes);
  uint64_t* empty = full + kMaxStages;
  uint64_t* complete = empty + kMaxStages;

  const int warp = warp_index(), lane = threadIdx.x % kWarp;
  const int rank = blockIdx.x % kSplit, column_peer = blockIdx.x / kSplit % share, row_peer = blockIdx.x / kSplit / share;
  const auto block_of = [&](int k, int column, int row) { return k + (column + row * share) * kSplit; };  // in the cluster
  const bool clustered = gridDim.x > 1;  // outside a cluster, the compiler turns its barrier into __syncthreads
  const int writers = share + pair - 1;  // blocks that fill a stage
  const int rows = *p.tokens;
  if (static_cast<int>(blockIdx.z) * pair * kRows >= rows) return;
  const int first_row = (blockIdx.z * pair + row_peer) * kRows;
  const int column_tile = blockIdx.y * share + column_peer, first_column = column_tile * kTile;
  const int boxes = ceil_div(p.depth, kDepth);
  const int begin = boxes * rank / kSplit, count = boxes * (rank + 1) / kSplit - begin;

  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      sm90::barrier_init(full + i, 1);
      sm90::barrier_init(empty + i, S::kGroups * writers);
    }
    sm90::barrier_init(complete, 1 + S::kFragments * kWarp);
    sm90::barrier_init_fence();
    sm90::expect_bytes(complete, (kSplit - 1) * S::kSlotBytes);
  }
  __syncthreads();
  if (clustered) sm90::cluster_arrive();  // the others may send once they have seen this

  if (warp == S::kWarps) {  // the feeder
    const int ahead = min(count, stages);
    const int input_part = kRows / share, weights_part = kTile / pair;
    unsigned input_mask = 0, weights_mask = 0;
    for (int i = 0; i < share; ++i) input_mask |= 1u << block_of(rank, i, row_peer);
    for (int i = 0; i < pair; ++i) weights_mask |= 1u << block_of(rank, column_peer, i);
    const auto load_weights = [&](int i, int s) {
      char* to = shared + s * S::kStageBytes + (kRows + row_peer * weights_part) * kLineBytes;
      const int column = (begin + i) * kDepth, row = first_column + row_peer * weights_part;
      if (pair == 1) return sm90::load_box(to, &weights, column, row, full + s);
      sm90::load_box_multicast(to, &weights, column, row, full + s, static_cast<uint16_t>(weights_mask));
    };
    const auto load_input = [&](int i, int s) {
      char* to = shared + s * S::kStageBytes + column_peer * input_part * kLineBytes;
      const int column = (begin + i) * kDepth, row = first_row + column_peer * input_part;
      if (share == 1) return sm90::load_box(to, &input, column, row, full + s);
      sm90::load_box_multicast(to, &input, column, row, full + s, static_cast<uint16_t>(input_mask));
    };
    if (lane == 0) {
      // What never changes does not wait for the kernel before; what others write into waits for them to be there.
      const int real = min(kTile, p.columns - first_column), side_bytes = real > 0 ? 4 * real : 0;
      const int sides = 1 + (kFormat != Format::half) + has_norms(kEpilogue);
#pragma unroll 1
      for (int i = 0; i < ahead; ++i) {
        sm90::expect_bytes(full + i, S::kStageBytes + (i == 0 ? sides * side_bytes : 0));
        if (pair == 1) load_weights(i, i);
      }
      if (side_bytes > 0) {
        if (kFormat != Format::half) sm90::load_bytes(side, p.scale + first_column, side_bytes, full);
        sm90::load_bytes(side + 4 * kTile, p.bias + first_column, side_bytes, full);
        if (has_norms(kEpilogue)) sm90::load_bytes(side + 8 * kTile, p.factor + first_column, side_bytes, full);
      }
      sm90::prefetch_map(&input);
    }
    __syncwarp();
    if (clustered) sm90::cluster_wait();
    if (lane == 0) {
      if (pair > 1) {
#pragma unroll 1
        for (int i = 0; i < ahead; ++i) load_weights(i, i);
      }
#pragma unroll 1
      for (int i = ahead; i < count; ++i) sm90::prefetch_box(&weights, (begin + i) * kDepth, first_column + row_peer * weights_part);
      wait_for_previous();
#pragma unroll 1
      for (int i = 0; i < ahead; ++i) load_input(i, i);
      if (p.next_bytes > 0) {  // each block a part of the next product's weights
        const unsigned all = gridDim.x * gridDim.y * gridDim.z, me = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        const unsigned part = (p.next_bytes / 16 + all - 1) / all * 16, end = min((me + 1) * part, p.next_bytes);
#pragma unroll 1
        for (unsigned at = me * part; at < end; at += 8192) sm90::prefetch_bytes(static_cast<const char*>(p.next) + at, min(8192u, end - at));
      }
      int s = 0, phase = 0;
#pragma unroll 1
      for (int i = ahead; i < count; ++i) {
        sm90::wait(empty + s, phase);
        sm90::expect_bytes(full + s, S::kStageBytes);
        load_weights(i, s);
        load_input(i, s);
        if (++s == stages) s = 0, phase ^= 1;
      }
    }
    __syncwarp();
    if (kSplit > 1 && launch.reuse) {
      sm90::cluster_arrive();
      sm90::cluster_wait();
    }
    return;
  }

  if (clustered) sm90::cluster_wait();
  const few::Share<S> my(warp, lane, rank, first_row, rows, first_column, p.columns);
  wait_for_previous();
  if (launch.early) let_next_start();
  float2 held[2][S::kHeld];
  if constexpr (has_norms(kEpilogue)) few::load_stats<S>(held, p.stats, my);
  uint32_t residual[2][S::kUnits];
  constexpr bool kResidual = kEpilogue == Epilogue::residual, kResidualFirst = kResidual && S::kUnits <= 4;  // as registers allow
  if constexpr (kResidualFirst) few::load_residual<S>(residual, p, my);

  Sum acc[kTile / 2];
#pragma unroll
  for (int i = 0; i < kTile / 2; ++i) acc[i] = 0;
  const int group = warp / 4;
  // A stage goes back to all blocks that fill it: one warp of the group for each.
  const auto release = [&](int stage) {
    const int q = warp % 4;
    if (q >= writers || lane != 0) return;
    if (writers == 1) return sm90::arrive(empty + stage);
    sm90::arrive_remote(empty + stage, q < share ? block_of(rank, q, row_peer) : block_of(rank, column_peer, q - share + (q - share >= row_peer)));
  };
  int s = 0, before = 0, phase = 0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const char* a = shared + s * S::kStageBytes + group * 64 * kLineBytes;
    const char* b = shared + s * S::kStageBytes + kRows * kLineBytes;
    sm90::wait(full + s, phase);
    const uint64_t da = sm90::descriptor<kLineBytes>(a), db = sm90::descriptor<kLineBytes>(b);
    sm90::multiply_box<kLineBytes / 32, kTile, kFormat>(acc, da, db, true);
    sm90::multiply_wait<1>();
    // Only what will be filled again: nobody signals a block that may have left.
    if (i > 0 && i - 1 + stages < count) release(before);
    before = s;
    if (++s == stages) s = 0, phase ^= 1;
  }
  if (!launch.early) let_next_start();
  Norm norms[2]{};
  const auto find_norms = [&] {
    if constexpr (has_norms(kEpilogue)) few::combine_stats<S>(norms, held, p.stats, my, kResidual ? p.columns : p.depth, p.eps);
  };
  if constexpr (kSplit == 1) find_norms();  // while the last products are under way; else while the sums travel
  sm90::multiply_wait<0>();
  sm90::pin(acc);

  if constexpr (kSplit > 1) {
    if (launch.reuse) {  // the receivers must be done with their stages
      sm90::cluster_arrive();
      sm90::cluster_wait();
    }
    few::send_sums<S>(acc, received, complete, warp, lane, rank, block_of(warp / S::kFragments, column_peer, row_peer));
  }
  // While the sums travel.
  if constexpr (kResidual && !kResidualFirst) few::load_residual<S>(residual, p, my);
  if constexpr (kSplit > 1) find_norms();
  Sum v[S::kUnits][4];
  if constexpr (kSplit > 1) {
    sm90::wait(complete, 0);
    few::add_received<S>(v, received, my);
  } else {
#pragma unroll
    for (int i = 0; i < kTile / 2; ++i) v[i / 4][i % 4] = acc[i];
  }
  if constexpr (kEpilogue == Epilogue::bias) {  // few tiles are both
    few::Share<S> narrow = my;
    narrow.columns = p.narrow_columns;
    if (first_column < p.narrow_columns) few::finish_share<S, kFormat, kEpilogue, Format::fp8>(v, residual, norms, side, p, narrow, column_tile);
    if (first_column + kTile > p.narrow_columns) few::finish_share<S, kFormat, kEpilogue, Format::half>(v, residual, norms, side, p, my, column_tile);
  } else {
    few::finish_share<S, kFormat, kEpilogue, kOutFormat<kFormat, kEpilogue>>(v, residual, norms, side, p, my, column_tile);
  }
#endif
}

template <Format kFormat, Epilogue kEpilogue, size_t... i>
FewKernel find_few_kernel(const Cut& cut, std::index_sequence<i...>) {
  constexpr auto& cuts = few_cuts<kFormat>();
  FewKernel found = nullptr;
  ((cut == cuts[i] ? void(found = product_few_kernel<cuts[i].rows, cuts[i].columns, cuts[i].split, cuts[i].half_sums, kFormat, kEpilogue>) : void()), ...);
  return found;
}

template <Format kFormat, Epilogue kEpilogue>
FewKernel few_kernel(const Cut& cut) {
  return find_few_kernel<kFormat, kEpilogue>(cut, std::make_index_sequence<std::size(few_cuts<kFormat>())>());
}

}  // namespace bert
