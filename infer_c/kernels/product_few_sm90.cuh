// SPDX-License-Identifier: Apache-2.0
// Hopper product for few rows. What limits here is latency: every block of a tile's `split` fetches its part of the depth at once,
// sends its sums to the others straight from the registers (st.async), and finishes its share of the rows; there is no second
// kernel and no barrier at the end. Neighbouring tiles of a cluster may share their input (`share`) or their weights (`pair`) by
// multicast. Where two blocks fit on a multiprocessor, the next product's blocks are there early (programmatic dependent launch)
// and fetch weights and columns' values, which never change, while this one still works; where not, they start when it ends.
#pragma once

#include <iterator>
#include <utility>

#include "product_few_finish.cuh"

namespace bert {

template <int kRows, int kTile, int kSplit, bool kHalfSums, Format kFormat, Epilogue kEpilogue>
__global__ void __launch_bounds__(few::Shape<kRows, kTile, kSplit, kHalfSums>::kThreads,
                                  few::Shape<kRows, kTile, kSplit, kHalfSums>::blocks(kEpilogue == Epilogue::residual))
    product_few_kernel(const FewLaunch launch, const Product p, const __grid_constant__ CUtensorMap input, const __grid_constant__ CUtensorMap weights) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using S = few::Shape<kRows, kTile, kSplit, kHalfSums>;
  using Sum = sm90::Sum<kFormat>;
  constexpr int kDepth = kLineBytes / bytes_of(kFormat);  // columns of a box
  extern __shared__ __align__(1024) char shared[];
  const int stages = launch.stages, share = launch.share, pair = launch.pair;
  char* received = launch.reuse ? shared : shared + stages * S::kStageBytes;               // (split, 1 / split of the tile)
  char* side = shared + stages * S::kStageBytes + (launch.reuse ? 0 : S::kReceivedBytes);  // scale, bias, factor of the tile's columns
  uint64_t* full = reinterpret_cast<uint64_t*>(side + S::kSideBytes);
  uint64_t *empty = full + kMaxStages, *complete = empty + kMaxStages, *sides = complete + 1;

  const int warp = warp_index(), lane = threadIdx.x % kWarp;
  const int rank = blockIdx.x % kSplit, peer = blockIdx.x / kSplit;
  const int column_peer = peer & (share - 1), row_peer = peer >> (share >> 1);  // share is 1, 2 or 4
  const auto block_of = [&](int k, int column, int row) { return k + (column + row * share) * kSplit; };  // in the cluster
  const bool clustered = gridDim.x > 1;  // outside a cluster, the compiler turns its barrier into __syncthreads
  const int writers = share + pair - 1;  // blocks that fill a stage
  const int first_row = (blockIdx.z * pair + row_peer) * kRows;
  const int column_tile = blockIdx.y * share + column_peer, first_column = column_tile * kTile;
  const int boxes = ceil_div(p.depth, kDepth);
  const int begin = boxes * rank / kSplit, count = boxes * (rank + 1) / kSplit - begin;

  // Two warps feed the others, one with weights and one with input: a thread asks for a box in about 200 cycles, in which the tensor
  // cores use one up. A block that could not start before the kernel ahead ended keeps everybody waiting until its first box is in,
  // so what comes before that is short: nothing is read from memory, the host has divided what is to be divided, warps set up the barriers
  // side by side, and the first box of weights is asked for before they have met.
  const bool feeds_weights = warp == S::kWarps, feeds_input = warp == S::kWarps + 1;
  const auto load_weights = [&](int i, int s) {  // and open the stage for what is to come
    sm90::expect_bytes(full + s, S::kStageBytes);
    const int skipped = row_peer * launch.weights_part;
    char* to = shared + s * S::kStageBytes + (kRows + skipped) * kLineBytes;
    const int column = (begin + i) * kDepth, row = first_column + skipped;
    if (pair == 1) return sm90::load_box(to, &weights, column, row, full + s);
    sm90::load_box_multicast(to, &weights, column, row, full + s, static_cast<uint16_t>(launch.weights_mask << block_of(rank, column_peer, 0)));
  };
  if (lane == 0) {
    if (feeds_weights) {
      sm90::prefetch_map(&weights);
      sm90::barrier_init(full, 1);
      sm90::barrier_init_fence();
      if (pair == 1) load_weights(0, 0);
    } else if (feeds_input) {
      sm90::prefetch_map(&input);
      sm90::barrier_init(sides, 1);
      sm90::barrier_init(complete, 1 + S::kFragments * kWarp);
      sm90::barrier_init_fence();
      if (kSplit > 1) sm90::expect_bytes(complete, (kSplit - 1) * S::kSlotBytes);
    } else {
#pragma unroll 1
      for (int i = warp; i < stages; i += S::kWarps) {
        if (i > 0) sm90::barrier_init(full + i, 1);
        sm90::barrier_init(empty + i, S::kGroups * writers);
      }
      sm90::barrier_init_fence();
    }
  }
  __syncwarp();
  if (clustered) {  // the others may send once they have seen this
    sm90::cluster_arrive();
    sm90::cluster_wait();
  } else {
    __syncthreads();
  }

  if (warp >= S::kWarps) {
    const int ahead = min(count, stages);
    const auto refill = [&](const auto& load) {  // stages that have been used, with the boxes that found no room at first
      int s = 0, phase = 0;
#pragma unroll 1
      for (int i = ahead; i < count; ++i) {
        sm90::wait(empty + s, phase);
        load(i, s);
        if (++s == stages) s = 0, phase ^= 1;
      }
    };
    if (feeds_weights && lane == 0) {  // which never change and do not wait for the kernel before
#pragma unroll 1
      for (int i = pair == 1; i < ahead; ++i) load_weights(i, i);
      const int real = min(kTile, p.columns - first_column), side_bytes = real > 0 ? 4 * real : 0;
      sm90::expect_bytes(sides, (1 + (kFormat != Format::half) + has_norms(kEpilogue)) * side_bytes);
      if (side_bytes > 0) {
        if (kFormat != Format::half) sm90::load_bytes(side, p.scale + first_column, side_bytes, sides);
        sm90::load_bytes(side + 4 * kTile, p.bias + first_column, side_bytes, sides);
        if (has_norms(kEpilogue)) sm90::load_bytes(side + 8 * kTile, p.factor + first_column, side_bytes, sides);
      }
      if (launch.prefetch < 2) {  // into the L2 cache what finds no room yet
#pragma unroll 1
        for (int i = ahead; i < count; ++i) sm90::prefetch_box(&weights, (begin + i) * kDepth, first_column + row_peer * launch.weights_part);
      }
      refill(load_weights);
      if (p.next_bytes > 0) {  // each block a part of the next product's weights
        const unsigned all = gridDim.x * gridDim.y * gridDim.z, me = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        const unsigned part = (p.next_bytes / 16 + all - 1) / all * 16, end = min((me + 1) * part, p.next_bytes);
#pragma unroll 1
        for (unsigned at = me * part; at < end; at += 8192) sm90::prefetch_bytes(static_cast<const char*>(p.next) + at, min(8192u, end - at));
      }
    } else if (feeds_input && lane == 0) {
      const int skipped = column_peer * launch.input_part, row = first_row + skipped;
      const uint32_t to = sm90::shared_address(shared + skipped * kLineBytes), ready = sm90::shared_address(full);
      const auto load_input = [&](int i, int s) {
        const int column = (begin + i) * kDepth;
        if (share == 1) return sm90::load_box(to + s * S::kStageBytes, &input, column, row, ready + 8 * s);
        const unsigned mask = launch.input_mask << block_of(rank, 0, row_peer);
        sm90::load_box_multicast(to + s * S::kStageBytes, &input, column, row, ready + 8 * s, static_cast<uint16_t>(mask));
      };
      wait_for_previous();
#pragma unroll 1
      for (int i = 0; i < ahead; ++i) load_input(i, i);
      refill(load_input);
    }
    __syncwarp();
    if (kSplit > 1 && launch.reuse) {
      sm90::cluster_arrive();
      sm90::cluster_wait();
    }
    return;
  }

  if (launch.early == 2) let_next_start();
  const int rows = *p.tokens;
  const few::Share<S> my(warp, lane, rank, first_row, rows, first_column, p.columns);
  wait_for_previous();
  if (launch.early == 1) let_next_start();
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
    for (Norm& norm : norms) norm = prepared<kEpilogue>(norm);
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
  sm90::wait(sides, 0);
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
