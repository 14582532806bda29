// SPDX-License-Identifier: Apache-2.0
// Hopper product for many rows of 8-bit values and a depth of at most 1,024: the weights of 128 columns stay in shared memory
// (128 KB) while the rows stream past them, so that the copy engine writes a quarter of what tiles of 64 x 256 need, and shared
// memory has bandwidth left for the tensor cores. Four warpgroups take turns at tiles of 64 x 128; three finish theirs meanwhile.
// The two blocks of a cluster have neighbouring columns and the same rows: each fetches half of them and multicasts it. Tiles
// are dealt out in columns' order, an equal share to each cluster, so a block changes its weights once at most.
#include "launch.h"
#include "product_tile.cuh"

namespace bert {

namespace {

constexpr int kCluster = 2;
constexpr int kRows = 64, kTile = 128;  // of a warpgroup's turn
constexpr int kGroups = 4, kGroupWarps = 4, kConsumerWarps = kGroups * kGroupWarps;
constexpr int kSideWarps = 2, kSideThreads = kSideWarps * kWarp;
constexpr int kThreads = (kConsumerWarps + 4) * kWarp;  // and a warpgroup that serves them: one warp feeds, two fetch side values
constexpr int kFeederRegisters = 64, kConsumerRegisters = 104;  // 128 x 64 + 512 x 104 = 640 x 96, what the launch allots
constexpr int kAhead = 1;  // chunks of the residual that are under way

constexpr int kDepth = 128;      // columns of a box, its row of 128 bytes
constexpr int kMostBoxes = 8;
constexpr int kWeightBytes = kTile * kDepth, kInputBytes = kRows * kDepth;
constexpr int kStages = 7;       // of the input
constexpr int kFewestRowTiles = kGroups;  // every group has a turn at each column then; rows that are not there are not stored

struct Columns {
  float4 pairs[kTile / 2];
  float2 factors[kTile / 2];
};

struct Shared {
  char weights[kMostBoxes * kWeightBytes];
  char stages[kStages * kInputBytes];
  char buffers[kConsumerWarps * kChunkBytes];
  Norm norms[kGroups][kRows];
  Columns columns[2];  // before and after the change of weights
  uint64_t full[kStages], empty[kStages], weights_full, weights_empty, columns_full[2], norms_full[kGroups], norms_empty[kGroups];
};
static_assert(sizeof(Shared) <= 232448, "227 KB is what a block can have");
static_assert(kRows == kSideThreads && kTile == 2 * kSideThreads, "the side warps fetch a row and two columns a thread");

// The turns of a cluster: tiles [begin, end) of all, counted down the rows of one pair of column tiles after another.
struct Share {
  int begin, end, row_tiles;

  __device__ Share(int rows, int columns) {
    row_tiles = max(ceil_div(rows, kRows), kFewestRowTiles);
    const int total = ceil_div(columns, kCluster * kTile) * row_tiles, cluster = blockIdx.x / kCluster, clusters = gridDim.x / kCluster;
    begin = static_cast<int>(static_cast<long long>(total) * cluster / clusters);
    end = static_cast<int>(static_cast<long long>(total) * (cluster + 1) / clusters);
  }
  __device__ int pair(int tile) const { return tile / row_tiles; }
  __device__ int row(int tile) const { return tile % row_tiles * kRows; }
  __device__ int column(int pair, int rank) const { return (pair * kCluster + rank) * kTile; }
};

template <Format kFormat, Epilogue kEpilogue>
__global__ void __launch_bounds__(kThreads, 1)
    product_stationary_kernel(const __grid_constant__ CUtensorMap input, const __grid_constant__ CUtensorMap weights, const Product p) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int warp = warp_index(), lane = threadIdx.x % kWarp;
  const int rank = static_cast<int>(sm90::cluster_rank());
  const int rows = *p.tokens, boxes = ceil_div(p.depth, kDepth);
  const Share share(rows, p.columns);
  const int first_pair = share.pair(share.begin), last_pair = share.pair(max(share.end - 1, share.begin));

  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      sm90::barrier_init(shared.full + i, 1);
      sm90::barrier_init(shared.empty + i, kCluster * kGroupWarps);  // a stage is free when nobody in the cluster reads it
    }
    sm90::barrier_init(&shared.weights_full, 1);
    sm90::barrier_init(&shared.weights_empty, kConsumerWarps);
    for (int i = 0; i < 2; ++i) sm90::barrier_init(shared.columns_full + i, kSideWarps);
    for (int i = 0; i < kGroups; ++i) {
      sm90::barrier_init(shared.norms_full + i, kSideWarps);
      sm90::barrier_init(shared.norms_empty + i, kGroupWarps);
    }
    sm90::barrier_init_fence();
  }
  __syncwarp();
  sm90::cluster_arrive();
  sm90::cluster_wait();

  if (warp >= kConsumerWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFeederRegisters));
    if (warp == kConsumerWarps && lane == 0) {
      const auto load_weights = [&](int pair) {
        sm90::expect_bytes(&shared.weights_full, boxes * kWeightBytes);
        for (int i = 0; i < boxes; ++i) {
          sm90::load_box(shared.weights + i * kWeightBytes, &weights, i * kDepth, share.column(pair, rank), &shared.weights_full);
        }
      };
      // Weights never change: the first ones are fetched before the kernel ahead of this one has ended.
      if (share.begin < share.end) load_weights(first_pair);
      sm90::prefetch_map(&input);
      wait_for_previous();
      int fed = 0, here = first_pair;
      for (int tile = share.begin; tile < share.end; ++tile) {
        if (share.pair(tile) != here) {
          here = share.pair(tile);
          sm90::wait(&shared.weights_empty, 0);
          load_weights(here);
        }
        for (int i = 0; i < boxes; ++i, ++fed) {
          const int s = fed % kStages, part = kRows / kCluster;
          sm90::wait(shared.empty + s, (fed / kStages & 1) ^ 1);
          sm90::expect_bytes(shared.full + s, kInputBytes);
          sm90::load_box_multicast(shared.stages + s * kInputBytes + rank * part * kDepth, &input, i * kDepth, share.row(tile) + rank * part, shared.full + s,
                                   (1 << kCluster) - 1);
        }
      }
    }
    if (warp > kConsumerWarps && warp <= kConsumerWarps + kSideWarps) {
      const int r = threadIdx.x - (kConsumerWarps + 1) * kWarp;
      for (int pair = first_pair; pair <= last_pair; ++pair) {
        const int column = share.column(pair, rank) + 2 * r;
        float2 scale{}, bias{}, factor{};
        if (column < p.columns) {
          scale = *reinterpret_cast<const float2*>(p.scale + column), bias = *reinterpret_cast<const float2*>(p.bias + column);
          if (has_norms(kEpilogue)) factor = *reinterpret_cast<const float2*>(p.factor + column);
        }
        shared.columns[pair - first_pair].pairs[r] = pair_values(kFormat, scale, bias, factor);
        shared.columns[pair - first_pair].factors[r] = factor;
        __syncwarp();
        if (lane == 0) sm90::arrive(shared.columns_full + pair - first_pair);
      }
      wait_for_previous();
      int turn = 0;
      for (int tile = share.begin; has_norms(kEpilogue) && tile < share.end; ++tile, ++turn) {
        const int group = turn % kGroups, row = min(share.row(tile) + r, rows - 1), first_column = share.column(share.pair(tile), rank);
        const Norm norm = combine(p.stats, row, p.columns, p.eps, 1);
        for (int i = first_column; i < min(first_column + kTile, p.columns); i += 64) {  // the residual; the epilogue fetches it late
          asm volatile("prefetch.global.L2 [%0];" ::"l"(p.residual + static_cast<size_t>(row) * p.columns + i));
        }
        sm90::wait(shared.norms_empty + group, (turn / kGroups & 1) ^ 1);
        shared.norms[group][r] = norm;
        __syncwarp();
        if (lane == 0) sm90::arrive(shared.norms_full + group);
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    wait_for_previous();
    const int group = warp / kGroupWarps, tile_row = warp % kGroupWarps * 16;
    const int first = share.begin + group;
    // A group whose first turn comes after the change of weights, or that has none, does not hold the change up.
    const bool late = first >= share.end || share.pair(first) != first_pair;
    if (lane == 0 && first_pair != last_pair && late) sm90::arrive(&shared.weights_empty);
    int turn = 0, weights_seen = 0;
    for (int tile = first; tile < share.end; tile += kGroups, ++turn) {
      const int pair = share.pair(tile), first_column = share.column(pair, rank), first_row = share.row(tile) + tile_row;
      uint4 residual[kAhead][kLines];
      if (kEpilogue == Epilogue::residual) load_residual(residual[0], p, first_row, first_column, rows);
      sm90::Sum<kFormat> acc[kTile / 2];
#pragma unroll
      for (int i = 0; i < kTile / 2; ++i) acc[i] = 0;
      // Turns begin when the group before has waited for its last stage: a stage's barrier tells this phase from the one before,
      // not from the one before that.
      if (tile > share.begin) sm90::named_barrier(1 + group, 2 * kGroupWarps * kWarp);
      while (weights_seen <= pair - first_pair) sm90::wait(&shared.weights_full, weights_seen++ & 1);
      int used = (tile - share.begin) * boxes;
      for (int i = 0; i < boxes; ++i, ++used) {
        const int s = used % kStages;
        sm90::wait(shared.full + s, used / kStages & 1);
        const uint64_t a = sm90::descriptor<kDepth>(shared.stages + s * kInputBytes), b = sm90::descriptor<kDepth>(shared.weights + i * kWeightBytes);
        sm90::pin(acc);
        sm90::multiply_fence();
#pragma unroll
        for (int k = 0; k < kDepth / 32; ++k) sm90::multiply<kTile, kFormat>(acc, a + 2 * k, b + 2 * k, true);  // + 2: 32 bytes
        sm90::multiply_commit();
        sm90::pin(acc);
        if (i == boxes - 1 && tile + 1 < share.end) sm90::named_arrive(1 + (group + 1) % kGroups, 2 * kGroupWarps * kWarp);
        sm90::multiply_wait<1>();
        if (i > 0 && lane < kCluster) sm90::arrive_remote(shared.empty + (used - 1) % kStages, lane);
      }
      sm90::multiply_wait<0>();
      sm90::pin(acc);
      if (lane < kCluster) sm90::arrive_remote(shared.empty + (used - 1) % kStages, lane);
      // This group is done with these weights when its next turn, or everybody's last, has others.
      const int next_pair = tile + kGroups < share.end ? share.pair(tile + kGroups) : last_pair;
      if (lane == 0 && next_pair != pair) sm90::arrive(&shared.weights_empty);
      sm90::wait(shared.columns_full + pair - first_pair, 0);
      if (has_norms(kEpilogue)) sm90::wait(shared.norms_full + group, turn & 1);
      const Columns& c = shared.columns[pair - first_pair];
      finish_tile<kFormat, kEpilogue, kTile, kAhead>(acc, residual, p, shared.norms[group] + tile_row, {c.pairs, c.factors},
                                                     shared.buffers + warp * kChunkBytes, first_row, first_column, rows);
      if (has_norms(kEpilogue) && lane == 0) sm90::arrive(shared.norms_empty + group);
    }
  }
  // Nobody leaves while the other block may still copy into this one or signal it.
  __syncwarp();
  sm90::cluster_arrive();
  sm90::cluster_wait();
#endif
}

using Kernel = void (*)(CUtensorMap, CUtensorMap, Product);

template <Format kFormat>
Kernel kernel_of(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::residual: return product_stationary_kernel<kFormat, Epilogue::residual>;
    case Epilogue::bias: return product_stationary_kernel<kFormat, Epilogue::bias>;
    case Epilogue::gelu_tanh: return product_stationary_kernel<kFormat, Epilogue::gelu_tanh>;
    case Epilogue::gelu_erf: return product_stationary_kernel<kFormat, Epilogue::gelu_erf>;
    default: fail("8-bit products have no folded norm");
  }
}

Kernel kernel_of(Format format, Epilogue epilogue) {
  if (format == Format::half) fail("the product with resident weights takes 8-bit values");
  return format == Format::int8 ? kernel_of<Format::int8>(epilogue) : kernel_of<Format::fp8>(epilogue);
}

}  // namespace

bool product_stationary_fits(Format format, int columns, int boxes, int multiprocessors) {
  return format != Format::half && boxes <= kMostBoxes && ceil_div(columns, kCluster * kTile) <= multiprocessors / kCluster;
}

void prepare_product_stationary() {
  for (const Format format : {Format::int8, Format::fp8}) {
    for (const Epilogue epilogue : {Epilogue::bias, Epilogue::gelu_tanh, Epilogue::gelu_erf, Epilogue::residual}) {
      allow_shared(kernel_of(format, epilogue), sizeof(Shared));
    }
  }
}

void product_stationary(cudaStream_t stream, Format format, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                        const Product& product) {
  static const int multiprocessors = [] {
    int device = 0, count = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
  }();
  if (!product_stationary_fits(format, product.columns, ceil_div(product.depth, kDepth), multiprocessors)) {
    fail("the product with resident weights does not fit ", product.columns, " columns of depth ", product.depth, " on ", multiprocessors, " multiprocessors");
  }
  launch(stream, {dim3(multiprocessors / kCluster * kCluster), dim3(kThreads), sizeof(Shared), kCluster, true}, kernel_of(format, epilogue), input, weights,
         product);
}

}  // namespace bert
