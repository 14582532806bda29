// SPDX-License-Identifier: Apache-2.0
// Hopper product for many rows: one block a multiprocessor walks over tiles of 128 x 256. One warp feeds a ring of 4 or 8
// stages (192 KB; shallower stages free their place earlier, deeper ones cost fewer barriers) through the copy engine, two more fetch what the epilogue needs, two warpgroups multiply 64 rows each. Two blocks of
// a cluster work on neighbouring rows and share the weights: each fetches half and multicasts it, so a block draws 32 KB from
// the L2 for 48 KB of operands. (Giving each warpgroup tiles of its own, 64 x 256 in turn, hides the epilogues but draws half
// as much again from the L2, which then limits: 62 ms against 54 for BERT-large, 128 x 384 tokens.)
#include "launch.h"
#include "product_sm90.h"
#include "row_stats.cuh"
#include "wgmma.cuh"

namespace bert {

namespace {

constexpr int kTile = 256;
constexpr int kCluster = 2;
constexpr int kConsumerWarps = 8;
constexpr int kSideWarps = 2;
constexpr int kSideThreads = kSideWarps * kWarp;
constexpr int kThreads = (kConsumerWarps + 4) * kWarp;  // and a warpgroup that serves them: one warp feeds the ring, two fetch `Side`
constexpr int kFeederRegisters = 88, kConsumerRegisters = 208;  // 128 x 88 + 256 x 208 = 64,512 of 65,536

constexpr int kChunk = 64;             // columns the epilogue handles at a time
constexpr int kPitch = kChunk + 8;     // halves of a row in the epilogue's buffer; + 8 keeps 16-byte accesses apart
constexpr int kChunkBytes = 16 * kPitch * 2;  // 16 rows: one warp's

// What the epilogue of a tile needs besides the products; fetched by two warps while the tile before is at work.
struct Side {
  Norm norms[kRowBox];
  float bias[kTile], factor[kTile];
};

// A ring of stages that are kDepth (64 or 32) columns of the input deep.
template <int kDepth>
struct Ring {
  static constexpr int kStages = 256 / kDepth;
  static constexpr int kInputBytes = kRowBox * kDepth * 2;
  static constexpr int kStageBytes = kInputBytes + kTile * kDepth * 2;
  static constexpr int kLag = 128 / kDepth;
  static constexpr int kSharedBytes = kStages * kStageBytes + kConsumerWarps * kChunkBytes + 2 * sizeof(Side) + (2 * kStages + 4) * 8;
};
static_assert(kTile == 4 * kSideThreads && kRowBox == 2 * kSideThreads, "the side warps fetch 4 columns a thread");
static_assert(Ring<64>::kSharedBytes <= 232448 && Ring<32>::kSharedBytes <= 232448, "227 KB is what a block can have");

template <Epilogue kEpilogue>
__device__ inline float finish(float acc, float bias, float factor, Norm norm, float residual) {
  if (kEpilogue == Epilogue::residual) return acc + bias + (residual - norm.mean) * norm.scale * factor;
  const float x = norm.scale * (acc - norm.mean * factor) + bias;
  return kEpilogue == Epilogue::norm_gelu_tanh ? gelu_tanh(x) : kEpilogue == Epilogue::norm_gelu_erf ? gelu_erf(x) : x;
}

// Fetch a warp's 16 x 64 values of the residual, whole lines: each is under way while the chunk before it is worked on.
__device__ inline void load_residual(uint4 (&lines)[4], const Product& p, int first_row, int first_column, int rows) {
  const int lane = threadIdx.x % kWarp, column = first_column + lane % 8 * 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = first_row + i * 4 + lane / 8;
    lines[i] = row < rows && column < p.columns ? __ldcg(reinterpret_cast<const uint4*>(p.residual + static_cast<size_t>(row) * p.columns + column)) : uint4{};
  }
}

// Finish a warp's 16 x 256 results: rows go through shared memory 64 columns at a time, so that the residual is read and
// the output written in whole 128-byte lines.
template <Epilogue kEpilogue>
__device__ void epilogue(float (&acc)[kTile / 2], const Product& p, const Side& side, __half* buffer, int tile_row, int first_row, int first_column,
                         int rows) {
  const int lane = threadIdx.x % kWarp, line = lane / 8, vector = lane % 8 * 8;  // line, vector: 16-byte accesses
  const int row0 = lane / 4, pair = 2 * (lane % 4);                              // the results' layout, wgmma.cuh
  const Norm norm0 = side.norms[tile_row + row0], norm1 = side.norms[tile_row + row0 + 8];
  uint4 lines[4];  // the next chunk of the residual
  float sum0 = 0, sum1 = 0;
  if (kEpilogue == Epilogue::residual) load_residual(lines, p, first_row + tile_row, first_column, rows);
#pragma unroll
  for (int c = 0; c < kTile / kChunk; ++c) {
    const int column = first_column + c * kChunk + vector;
    if (first_column + c * kChunk >= p.columns) break;
    if (kEpilogue == Epilogue::residual) {
#pragma unroll
      for (int i = 0; i < 4; ++i) *reinterpret_cast<uint4*>(buffer + (i * 4 + line) * kPitch + vector) = lines[i];
      __syncwarp();
      if (c + 1 < kTile / kChunk) load_residual(lines, p, first_row + tile_row, first_column + (c + 1) * kChunk, rows);
    }
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j) {
      const int at = c * kChunk + j * 8 + pair;
      float* d = acc + 4 * (c * kChunk / 8 + j);
      const float2 bias = *reinterpret_cast<const float2*>(side.bias + at), factor = *reinterpret_cast<const float2*>(side.factor + at);
      __half2* to0 = reinterpret_cast<__half2*>(buffer + row0 * kPitch + j * 8 + pair);
      __half2* to1 = reinterpret_cast<__half2*>(buffer + (row0 + 8) * kPitch + j * 8 + pair);
      float2 x0{}, x1{};
      if (kEpilogue == Epilogue::residual) x0 = __half22float2(*to0), x1 = __half22float2(*to1);
      const __half2 y0 = __floats2half2_rn(finish<kEpilogue>(d[0], bias.x, factor.x, norm0, x0.x), finish<kEpilogue>(d[1], bias.y, factor.y, norm0, x0.y));
      const __half2 y1 = __floats2half2_rn(finish<kEpilogue>(d[2], bias.x, factor.x, norm1, x1.x), finish<kEpilogue>(d[3], bias.y, factor.y, norm1, x1.y));
      *to0 = y0;
      *to1 = y1;
      if (kEpilogue == Epilogue::residual) {
        // Columns past the end are exactly 0: zero weights, and zero bias and factor.
        const float2 f0 = __half22float2(y0), f1 = __half22float2(y1);
        d[0] = f0.x, d[1] = f0.y, d[2] = f1.x, d[3] = f1.y;
        sum0 += f0.x + f0.y;
        sum1 += f1.x + f1.y;
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + tile_row + i * 4 + line;
      const uint4 value = *reinterpret_cast<const uint4*>(buffer + (i * 4 + line) * kPitch + vector);
      if (row < rows && column < p.columns) *reinterpret_cast<uint4*>(p.out + static_cast<size_t>(row) * p.columns + column) = value;
    }
    __syncwarp();
  }
  if (kEpilogue == Epilogue::residual) {
    const int width = min(kTile, p.columns - first_column);
#pragma unroll
    for (int step = 1; step < 4; step *= 2) sum0 += __shfl_xor_sync(~0u, sum0, step), sum1 += __shfl_xor_sync(~0u, sum1, step);
    const float mean0 = sum0 / width, mean1 = sum1 / width;
    float squares0 = 0, squares1 = 0;
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      const float* d = acc + 4 * j;
      if (j * 8 + pair < width) {  // width is a multiple of 8
        squares0 += (d[0] - mean0) * (d[0] - mean0) + (d[1] - mean0) * (d[1] - mean0);
        squares1 += (d[2] - mean1) * (d[2] - mean1) + (d[3] - mean1) * (d[3] - mean1);
      }
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) squares0 += __shfl_xor_sync(~0u, squares0, step), squares1 += __shfl_xor_sync(~0u, squares1, step);
    if (lane % 4 == 0) {
      const int row = first_row + tile_row + row0;
      float2* to = p.out_stats.data + static_cast<size_t>(row) * p.out_stats.tiles + first_column / kTile;
      if (row < rows) to[0] = make_float2(mean0, squares0);
      if (row + 8 < rows) to[8 * p.out_stats.tiles] = make_float2(mean1, squares1);
    }
  }
}

template <Epilogue kEpilogue, int kDepth>
__global__ void __launch_bounds__(kThreads, 1)
    product_persistent_kernel(const __grid_constant__ CUtensorMap input, const __grid_constant__ CUtensorMap weights, const Product p) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using R = Ring<kDepth>;
  constexpr int kStages = R::kStages, kStageBytes = R::kStageBytes, kInputBytes = R::kInputBytes, kLag = R::kLag;
  extern __shared__ __align__(1024) char shared[];
  __half* buffers = reinterpret_cast<__half*>(shared + kStages * kStageBytes);
  Side* sides = reinterpret_cast<Side*>(shared + kStages * kStageBytes + kConsumerWarps * kChunkBytes);
  uint64_t* full = reinterpret_cast<uint64_t*>(sides + 2);
  uint64_t* empty = full + kStages;
  uint64_t* side_full = empty + kStages;
  uint64_t* side_empty = side_full + 2;

  const int warp = warp_index(), lane = threadIdx.x % kWarp;
  const int rank = static_cast<int>(sm90::cluster_rank());
  const int rows = *p.tokens;
  const int column_tiles = ceil_div(p.columns, kTile), tiles = ceil_div(rows, kCluster * kRowBox) * column_tiles;
  const int first_tile = blockIdx.x / kCluster, tile_step = gridDim.x / kCluster;
  const int blocks = ceil_div(p.depth, kDepth);

  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      sm90::barrier_init(full + i, 1);
      sm90::barrier_init(empty + i, kCluster * kConsumerWarps);  // a stage is free when nobody in the cluster reads it
    }
    for (int i = 0; i < 2; ++i) {
      sm90::barrier_init(side_full + i, kSideWarps);
      sm90::barrier_init(side_empty + i, kConsumerWarps);
    }
    sm90::barrier_init_fence();
  }
  __syncwarp();
  sm90::cluster_arrive();
  sm90::cluster_wait();

  if (warp >= kConsumerWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFeederRegisters));
    if (lane == 0) sm90::prefetch_map(&input), sm90::prefetch_map(&weights);
    wait_for_previous();
    int fed = 0, turn = 0;
    for (int tile = first_tile; tile < tiles && warp == kConsumerWarps && lane == 0; tile += tile_step) {
      const int first_row = (tile / column_tiles * kCluster + rank) * kRowBox, first_column = tile % column_tiles * kTile;
      auto feed = [&](int i) {
        const int s = fed % kStages;
        sm90::wait(empty + s, (fed / kStages & 1) ^ 1);
        sm90::expect_bytes(full + s, kStageBytes);
        char* stage = shared + s * kStageBytes;
        sm90::load_box(stage, &input, i * kDepth, first_row, full + s);
        sm90::load_box_multicast(stage + kInputBytes + rank * (kStageBytes - kInputBytes) / kCluster, &weights, i * kDepth,
                                 first_column + rank * kTile / kCluster, full + s, (1 << kCluster) - 1);
        ++fed;
      };
      for (int i = 0; i < blocks; ++i) feed(i);
    }
    // Side values have warps of their own: their latency must not hold up the ring.
    for (int tile = first_tile; tile < tiles && warp > kConsumerWarps && warp <= kConsumerWarps + kSideWarps; tile += tile_step, ++turn) {
      const int first_row = (tile / column_tiles * kCluster + rank) * kRowBox, first_column = tile % column_tiles * kTile;
      const int r = threadIdx.x - (kConsumerWarps + 1) * kWarp;
      Side& side = sides[turn % 2];
      float4 bias{}, factor{};  // each thread fetches 4 columns and 2 rows
      if (first_column + 4 * r < p.columns) {
        bias = *reinterpret_cast<const float4*>(p.bias + first_column + 4 * r);
        factor = *reinterpret_cast<const float4*>(p.factor + first_column + 4 * r);
      }
      const int width = kEpilogue == Epilogue::residual ? p.columns : p.depth;
      const Norm norm0 = combine(p.stats, min(first_row + r, rows - 1), width, p.eps, 1);
      const Norm norm1 = combine(p.stats, min(first_row + r + kSideThreads, rows - 1), width, p.eps, 1);
      sm90::wait(side_empty + turn % 2, (turn / 2 & 1) ^ 1);
      side.norms[r] = norm0;
      side.norms[r + kSideThreads] = norm1;
      *reinterpret_cast<float4*>(side.bias + 4 * r) = bias;
      *reinterpret_cast<float4*>(side.factor + 4 * r) = factor;
      __syncwarp();
      if (lane == 0) sm90::arrive(side_full + turn % 2);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    wait_for_previous();
    // The second group starts kLag boxes late and stays behind, so that one's epilogue falls beside the other's products.
    if (warp >= kConsumerWarps / 2 && first_tile < tiles) sm90::named_barrier(1, kConsumerWarps * kWarp);
    int used = 0, turn = 0;
    for (int tile = first_tile; tile < tiles; tile += tile_step, ++turn) {
      const int first_row = (tile / column_tiles * kCluster + rank) * kRowBox, first_column = tile % column_tiles * kTile;
      auto release = [&](int s) {
        if (lane < kCluster) sm90::arrive_remote(empty + s, lane);
      };
      float acc[kTile / 2];
#pragma unroll
      for (int i = 0; i < kTile / 2; ++i) acc[i] = 0.f;
      for (int i = 0; i < blocks; ++i, ++used) {
        const int s = used % kStages;
        const char* stage = shared + s * kStageBytes;
        sm90::wait(full + s, used / kStages & 1);
        const uint64_t a = sm90::descriptor<2 * kDepth>(stage + warp / 4 * 64 * kDepth * 2), b = sm90::descriptor<2 * kDepth>(stage + kInputBytes);
        sm90::pin(acc);
        sm90::multiply_fence();
#pragma unroll
        for (int k = 0; k < kDepth / 16; ++k) sm90::multiply<kTile>(acc, a + 2 * k, b + 2 * k, true);
        sm90::multiply_commit();
        sm90::pin(acc);
        sm90::multiply_wait<1>();
        if (i > 0) release((used - 1) % kStages);
        if (used == min(kLag, blocks) - 1 && warp < kConsumerWarps / 2) sm90::named_arrive(1, kConsumerWarps * kWarp);
      }
      sm90::multiply_wait<0>();
      sm90::pin(acc);
      release((used - 1) % kStages);
      sm90::wait(side_full + turn % 2, turn / 2 & 1);
      epilogue<kEpilogue>(acc, p, sides[turn % 2], buffers + warp * kChunkBytes / 2, warp * 16, first_row, first_column, rows);
      if (lane == 0) sm90::arrive(side_empty + turn % 2);
    }
  }
  // Nobody leaves while the other block may still copy into this one or signal it.
  __syncwarp();
  sm90::cluster_arrive();
  sm90::cluster_wait();
#endif
}

using Kernel = void (*)(CUtensorMap, CUtensorMap, Product);

template <int kDepth>
Kernel kernel_of(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::norm: return product_persistent_kernel<Epilogue::norm, kDepth>;
    case Epilogue::norm_gelu_tanh: return product_persistent_kernel<Epilogue::norm_gelu_tanh, kDepth>;
    case Epilogue::norm_gelu_erf: return product_persistent_kernel<Epilogue::norm_gelu_erf, kDepth>;
    default: return product_persistent_kernel<Epilogue::residual, kDepth>;
  }
}

}  // namespace

void prepare_product_persistent() {
  for (const Epilogue epilogue : {Epilogue::norm, Epilogue::norm_gelu_tanh, Epilogue::norm_gelu_erf, Epilogue::residual}) {
    allow_shared(kernel_of<64>(epilogue), Ring<64>::kSharedBytes);
    allow_shared(kernel_of<32>(epilogue), Ring<32>::kSharedBytes);
  }
}

void product_persistent(cudaStream_t stream, const Variant& variant, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                        const Product& product, int rows, int multiprocessors) {
  const int clusters = std::min(multiprocessors / kCluster, ceil_div(rows, kCluster * kRowBox) * ceil_div(product.columns, kTile));
  const bool shallow = variant.box_columns() == 32;
  const size_t shared_bytes = shallow ? Ring<32>::kSharedBytes : Ring<64>::kSharedBytes;
  launch(stream, {dim3(clusters * kCluster), dim3(kThreads), shared_bytes, kCluster, true},
         shallow ? kernel_of<32>(epilogue) : kernel_of<64>(epilogue), input, weights, product);
}

}  // namespace bert
