// SPDX-License-Identifier: Apache-2.0
// Hopper product for many rows: one block a multiprocessor, two warpgroups that multiply, two warps that feed a ring of stages of 40 or
// 48 KB through the copy engine, and two warps that fetch what the epilogues need. The two blocks of a cluster work on neighbouring
// rows with the same weights: each fetches half of them and multicasts it. What limits long passes is power, of which bringing a
// tile's operands into shared memory is a fifth (docs/kernels.md): hence tiles as large as registers allow.
#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>

#include "launch.h"
#include "product_instances.h"
#include "product_persistent.cuh"

namespace bert {

namespace {

using namespace persistent;

// Of a tile in the result.
struct Place {
  int row, column;
};

template <class S, Format kFormat, Epilogue kEpilogue>
__global__ void __launch_bounds__(kThreads, 1)
    product_persistent_kernel(const Product p, const __grid_constant__ CUtensorMap input, const __grid_constant__ CUtensorMap weights) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using Side = typename S::Side;
  constexpr int kDepth = kRowBytes / bytes_of(kFormat);  // columns of a stage
  constexpr int kRows = S::kRows, kTile = S::kColumns, kStages = S::kStages, kStageBytes = S::kStageBytes;
  extern __shared__ __align__(1024) char shared[];
  Side* sides = reinterpret_cast<Side*>(shared + kStages * kStageBytes);
  uint64_t* full = reinterpret_cast<uint64_t*>(sides + kSides);
  uint64_t* empty = full + kStages;
  uint64_t* side_full = empty + kStages;  // of the `Side`s, which tiles take in turn
  uint64_t* side_empty = side_full + kSides;

  const int warp = warp_index(), lane = threadIdx.x % kWarp;
  const int rank = static_cast<int>(sm90::cluster_rank());
  const int first_tile = blockIdx.x / kCluster, tile_step = gridDim.x / kCluster;
  const int blocks = ceil_div(p.depth, kDepth);

  let_next_start();
  static_assert(kStages <= kConsumerWarps && kSides <= kConsumerWarps);
  if (lane == 0 && warp < kConsumerWarps) {  // side by side
    if (warp < kStages) {
      sm90::barrier_init(full + warp, 1);
      sm90::barrier_init(empty + warp, kCluster * S::kConsumers * kGroupWarps);  // a stage is free when nobody in the cluster reads it
    }
    if (warp < kSides) {
      sm90::barrier_init(side_full + warp, kSideThreads);
      sm90::barrier_init(side_empty + warp, S::kConsumers * kGroupWarps * kWarp);
    }
    sm90::barrier_init_fence();
  } else if (lane == 0 && warp == kFeedsWeights) {
    sm90::prefetch_map(&weights);
  } else if (lane == 0 && warp == kFeedsInput) {
    sm90::prefetch_map(&input);
  }
  __syncwarp();
  sm90::cluster_arrive();
  const int rows = *p.tokens;  // not before: everybody would wait for it
  const int column_tiles = ceil_div(p.columns, kTile), row_tiles = ceil_div(rows, kCluster * kRows), tiles = row_tiles * column_tiles;
  const auto place_of = [&](int tile) {
    const int row_tile = tile / column_tiles;
    return Place{((p.descending ? row_tiles - 1 - row_tile : row_tile) * kCluster + rank) * kRows, (tile - row_tile * column_tiles) * kTile};
  };
  const Place first_place = place_of(first_tile);
  sm90::cluster_wait();

  if (warp >= kConsumerWarps) {
    sm90::give_registers<S::kFeederRegisters>();
    // One warp feeds weights, one input: a thread takes a few hundred cycles for both, and the tensor cores use a stage up in 500 to 800.
    const auto each_stage = [&](const auto& load) {
      int s = 0, phase = 1;
      Place place = first_place;
      for (int tile = first_tile; tile < tiles; tile += tile_step, place = place_of(tile)) {
#pragma unroll 1
        for (int i = 0; i < blocks; ++i) {
          sm90::wait(empty + s, phase);
          load(place, i, s);
          if (++s == kStages) s = 0, phase ^= 1;
        }
      }
    };
    if (warp == kFeedsWeights && lane == 0 && first_tile < tiles) {
      constexpr int kPart = kTile / kCluster;  // columns that a block fetches, for both
      const auto load_weights = [&](const Place& place, int i, int s) {
        sm90::expect_bytes(full + s, kStageBytes);
        char* to = shared + s * kStageBytes + S::kInputBytes + rank * kPart * kRowBytes;
        sm90::load_groups_multicast(to, &weights, i * kDepth, (place.column + rank * kPart) / kColumnGroup, full + s, (1 << kCluster) - 1);
      };
      // Weights never change: the first ones are fetched before the kernel ahead of this one has ended. No more of them, since most
      // blocks start when it ends, and the copy engine would take the first input after all that was asked for before.
      load_weights(first_place, 0, 0);
      wait_for_previous();
      int fed = 0;
      each_stage([&](const Place& place, int i, int s) {
        if (fed++ > 0) load_weights(place, i, s);
      });
    }
    if (warp == kFeedsInput && lane == 0) {
      wait_for_previous();
      each_stage([&](const Place& place, int i, int s) { sm90::load_box(shared + s * kStageBytes, &input, i * kDepth, place.row, full + s); });
    }
    // Side values have warps of their own: their latency must not hold up the ring.
    if (warp >= kFirstSide) {
      wait_for_previous();
      int turn = 0;
      Place place = first_place;
      for (int tile = first_tile; tile < tiles; tile += tile_step, ++turn, place = place_of(tile)) {
        const int r = static_cast<int>(threadIdx.x) - kFirstSide * kWarp, column = place.column + 4 * r;
        Side& side = sides[turn % kSides];
        sm90::wait(side_empty + turn % kSides, (turn / kSides & 1) ^ 1);
        if (4 * r < kTile) {
          float4 scale{}, bias{}, factor{};
          if (column < p.columns) {
            bias = *reinterpret_cast<const float4*>(p.bias + column);
            if (kFormat != Format::half) scale = *reinterpret_cast<const float4*>(p.scale + column);
            if (has_norms(kEpilogue)) factor = *reinterpret_cast<const float4*>(p.factor + column);
          }
          const int first = place_of_pair(2 * r), second = place_of_pair(2 * r + 1);
          side.pairs[first] = pair_values(kFormat, {scale.x, scale.y}, {bias.x, bias.y}, {factor.x, factor.y});
          side.pairs[second] = pair_values(kFormat, {scale.z, scale.w}, {bias.z, bias.w}, {factor.z, factor.w});
          side.factors[first] = {factor.x, factor.y}, side.factors[second] = {factor.z, factor.w};
        }
        if (has_norms(kEpilogue)) {
#pragma unroll 1
          for (int i = r; i < kRows; i += kSideThreads) {
            const int row = min(place.row + i, rows - 1);
            side.norms[i] = prepared<kEpilogue>(combine<4>(p.stats, row, kEpilogue == Epilogue::residual ? p.columns : p.depth, p.eps, 1));
            if (kEpilogue == Epilogue::residual && S::kAhead * kColumnGroup < kTile) {  // bring it close; the epilogue fetches it late
              for (int k = place.column; k < min(place.column + kTile, p.columns); k += 64) {
                asm volatile("prefetch.global.L2 [%0];" ::"l"(p.residual + static_cast<size_t>(row) * p.columns + k));
              }
            }
          }
        }
        sm90::arrive(side_full + turn % kSides);
      }
    }
  } else {
    sm90::take_registers<S::kConsumerRegisters>();
    const int group = warp / kGroupWarps, step = S::kTurns ? kGroups * tile_step : tile_step;
    int used = S::kTurns ? group * blocks : 0, turn = S::kTurns ? group : 0;  // stages and tiles of the block up to this group's next one
    int tile = first_tile + turn * tile_step;
    Place place = place_of(tile);
    wait_for_previous();
    for (; tile < tiles; tile += step, place = place_of(tile)) {
      const int block_row = (S::kTurns ? 0 : group) * S::kBlocks * 64;  // in the tile
      const int warp_row = block_row + warp % kGroupWarps * 16;
      GroupResidual residual[S::kAhead];
      sm90::Sum<kFormat> acc[S::kBlocks][kTile / 2];
#pragma unroll
      for (int i = 0; i < S::kSums; ++i) acc[i / (kTile / 2)][i % (kTile / 2)] = 0;
      // Turns begin when the other group has waited for its last stage: a stage's barrier tells this phase from the one before,
      // not from the one before that.
      if (S::kTurns && turn > 0) sm90::named_barrier(1 + group, kGroups * kGroupWarps * kWarp);
      const auto multiply_stage = [&](int i, const auto& meanwhile) {
        const int s = used % kStages;
        const char* stage = shared + s * kStageBytes;
        sm90::wait(full + s, used / kStages & 1);
        const uint64_t a = sm90::descriptor<kRowBytes>(stage + block_row * kRowBytes), b = sm90::descriptor<kRowBytes>(stage + S::kInputBytes);
#pragma unroll
        for (int k = 0; k < S::kBlocks; ++k) sm90::multiply_box<kRowBytes / 32, kTile, kFormat>(acc[k], a + k * (kBlockBytes / 16), b, true);
        if (S::kTurns && i == blocks - 1 && tile + tile_step < tiles) sm90::named_arrive(1 + (group + 1) % kGroups, kGroups * kGroupWarps * kWarp);
        meanwhile();
        sm90::multiply_wait<S::kBlocks>();
        if (i > 0 && lane < kCluster) sm90::arrive_remote(empty + (used - 1) % kStages, lane);
      };
      // Ends with a wait of its own: where control flow meets while they multiply, the compiler lets the tensor cores stand still.
      const auto multiply_from = [&](int i) {
        const auto nothing = [] {};
        if constexpr (kFormat == Format::half) {  // which is faster as the compiler unrolls it, 8 bits where it does not
          for (; i < blocks; ++i, ++used) multiply_stage(i, nothing);
        } else {
#pragma unroll 1
          for (; i < blocks; ++i, ++used) multiply_stage(i, nothing);
        }
        sm90::multiply_wait<0>();
      };
      if constexpr (kEpilogue == Epilogue::residual) {
        const auto load_group = [&](int g) { load_residual_group(residual[g], p, place.row + warp_row, place.column, g, rows); };
        constexpr int kParts = S::kAhead / 2;
        if (blocks >= kParts) {  // two groups while each of the first stages is multiplied: all at once they would hold up its boxes
#pragma unroll
          for (int i = 0; i < kParts; ++i, ++used) multiply_stage(i, [&] { load_group(2 * i), load_group(2 * i + 1); });
          multiply_from(kParts);
        } else {
          load_residuals(residual, p, place.row + warp_row, place.column, rows);
          multiply_from(0);
        }
      } else {
        multiply_from(0);
      }
#pragma unroll
      for (int k = 0; k < S::kBlocks; ++k) sm90::pin(acc[k]);
      if (lane < kCluster) sm90::arrive_remote(empty + (used - 1) % kStages, lane);
      sm90::wait(side_full + turn % kSides, turn / kSides & 1);
      const ColumnPairs columns{sides[turn % kSides].pairs, sides[turn % kSides].factors};
      constexpr int kBatch = kEpilogue == Epilogue::residual && S::kSums > 128 ? 2 : 4;  // what registers are left for
      finish_tile<kFormat, kEpilogue, S::kBlocks, kTile, S::kAhead, kBatch>(acc, residual, p, sides[turn % kSides].norms + warp_row, columns,
                                                                            place.row + warp_row, place.column, rows);
      sm90::arrive(side_empty + turn % kSides);
      turn += S::kTurns ? kGroups : 1, used += S::kTurns ? (kGroups - 1) * blocks : 0;
    }
  }
  // Nobody leaves while another block may still copy into this one or signal it.
  __syncwarp();
  sm90::cluster_arrive();
  sm90::cluster_wait();
#endif
}

using Kernel = void (*)(Product, CUtensorMap, CUtensorMap);

// use(a persistent::Shape) of the variant's tiles: kPersistentTiles[i] or one behind it.
template <size_t i = 0, class Use>
auto with_shape(const Variant& v, Use use) {
  constexpr PersistentTile tile = kPersistentTiles[i];
  if constexpr (i + 1 < std::size(kPersistentTiles)) {
    if (!v.has(tile)) return with_shape<i + 1>(v, use);
  }
  return use(Shape<tile.rows / 64 / (tile.turns ? 1 : kGroups), tile.columns, tile.turns>{});
}

Kernel kernel_of(Format format, Epilogue epilogue, const Variant& v) {
  return with_shape(v, [&](auto shape) {
    return product_instance(format, epilogue, [](auto f, auto e) -> Kernel { return product_persistent_kernel<decltype(shape), f.value, e.value>; });
  });
}

size_t shared_bytes(const Variant& v) {
  return with_shape(v, [](auto shape) { return static_cast<size_t>(shape.kSharedBytes); });
}

// Clusters that fit on the machine at once: more would wait for the first ones to end. As many of every instance, each of which takes
// a multiprocessor for itself; asked of one that is prepared.
int clusters_at_once(Format format) {
  static std::map<int, int> known;  // by device
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  int& count = known[current_device()];
  if (count == 0) {
    const Variant any = persistent_variants().front();
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {kCluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kCluster), config.blockDim = dim3(kThreads), config.dynamicSmemBytes = shared_bytes(any);
    config.attrs = &attribute, config.numAttrs = 1;
    CUDA_CHECK(cudaOccupancyMaxActiveClusters(&count, kernel_of(format, Epilogue::residual, any), &config));
    if (count < 1) fail("no cluster of ", kCluster, " blocks fits on this GPU");
  }
  return count;
}

}  // namespace

void prepare_product_persistent(Format format) {
  for (const Variant& v : persistent_variants()) {
    for_epilogues(format, [&](Epilogue epilogue) { allow_shared(kernel_of(format, epilogue, v), shared_bytes(v)); });
  }
  clusters_at_once(format);
}

void product_persistent(cudaStream_t stream, const Variant& variant, Format format, Epilogue epilogue, const CUtensorMap& input,
                        const CUtensorMap& weights, const Product& product, int rows) {
  const int tiles = ceil_div(rows, kCluster * variant.tile_rows) * ceil_div(product.columns, variant.tile_columns);
  const Launch shape{dim3(kCluster * std::min(clusters_at_once(format), tiles)), dim3(kThreads), shared_bytes(variant), kCluster, true};
  launch(stream, shape, kernel_of(format, epilogue, variant), product, input, weights);
}

}  // namespace bert
