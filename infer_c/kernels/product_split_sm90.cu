// SPDX-License-Identifier: Apache-2.0
// Hopper product for few rows: tiles of 128 x kTile, and up to 8 blocks of a cluster share the depth of one tile, so
// that 128 rows fill the machine. Each block finishes a share of the rows: the others send it their partial sums through
// distributed shared memory; no second kernel. Up to 4 neighbouring tiles of a cluster share their input rows: each block
// fetches a part and multicasts it, because what limits here is the traffic from the L2 (8 TB/s), two thirds of it input.
// Small enough that two blocks fit on a multiprocessor: with programmatic dependent launch the next product's blocks are
// there early and fetch their weights while this one still works.
#include "launch.h"
#include "product_epilogue.cuh"
#include "product_sm90.h"
#include "wgmma.cuh"

namespace bert {

namespace {

constexpr int kRowBytes = 128;         // of a box: the swizzle's width; 64 halves or 128 values of 8 bits
constexpr int kConsumers = 256;        // two warpgroups of 64 rows each
constexpr int kThreads = kConsumers + kWarp;  // and the warp that feeds them
constexpr int kConsumerWarps = kConsumers / kWarp;
constexpr int kMaxSplit = 8;           // the largest portable cluster
constexpr int kAhead = 4;              // passes over rows whose residual is fetched early

template <int kTile>
struct Shape {
  static constexpr bool kSplits = kTile == 64;  // wider tiles have no room for others' partial sums and are not split
  static constexpr int kStageBytes = (kRowBox + kTile) * kRowBytes;
  static constexpr int kPitch = kTile + 8;      // of a row of partial sums; + 8 keeps the 8-byte stores apart
  static constexpr int kReceiveBytes = kSplits ? (kRowBox - kRowBox / kMaxSplit) * kPitch * 4 : 0;  // from 7 others at most
  static constexpr int kStages = (107 * 1024 - kReceiveBytes) / kStageBytes;  // two blocks a multiprocessor
  static_assert(kRowBox * kPitch * 4 <= kStages * kStageBytes, "the partial sums take the place of the stages");
  static constexpr int kSharedBytes = kStages * kStageBytes + kReceiveBytes + kRowBox * 8 + (2 * kStages + 1) * 8;
};

template <class T>
struct alignas(2 * sizeof(T)) Two {
  T x, y;
};
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x, y, z, w;
};

template <int kTile, Format kFormat, Epilogue kEpilogue>
__global__ void __launch_bounds__(kThreads, 2)
    product_split_kernel(const __grid_constant__ CUtensorMap input, const __grid_constant__ CUtensorMap weights, const Product p) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using S = Shape<kTile>;
  using Sum = sm90::Sum<kFormat>;
  constexpr Format kOut = kOutFormat<kFormat, kEpilogue>;
  constexpr int kDepth = kRowBytes / bytes_of(kFormat);  // columns of a box
  extern __shared__ __align__(1024) char shared[];
  Sum* partial = reinterpret_cast<Sum*>(shared);                                       // (128, kPitch), after the products
  Sum* received = reinterpret_cast<Sum*>(shared + S::kStages * S::kStageBytes);        // (split - 1, slice, kPitch)
  Norm* norms = reinterpret_cast<Norm*>(received + S::kReceiveBytes / 4);              // (128,)
  uint64_t* full = reinterpret_cast<uint64_t*>(norms + kRowBox);
  uint64_t* empty = full + S::kStages;
  uint64_t* complete = empty + S::kStages;

  const int warp = warp_index(), lane = threadIdx.x % kWarp;
  const int share = p.share, split = gridDim.x / share;
  const int rank = blockIdx.x % split, neighbour = blockIdx.x / split;  // the cluster is (share, split) blocks
  const bool clustered = gridDim.x > 1;  // outside a cluster, the compiler turns its barrier into __syncthreads
  const int first_row = blockIdx.z * kRowBox, column_tile = blockIdx.y * share + neighbour;
  const int first_column = column_tile * kTile;
  const int rows = *p.tokens;
  if (first_row >= rows) return;
  const int blocks = ceil_div(p.depth, kDepth);
  const int begin = blocks * rank / split, count = blocks * (rank + 1) / split - begin;

  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      sm90::barrier_init(full + i, 1);
      sm90::barrier_init(empty + i, kConsumerWarps * share);
    }
    sm90::barrier_init(complete, 1);
    sm90::barrier_init_fence();
    sm90::expect_bytes(complete, (split - 1) * kRowBox / split * S::kPitch * 4);
  }
  __syncthreads();
  if (clustered) sm90::cluster_arrive();  // the others may send once they have seen this

  const int slice = kRowBox / split, slice_begin = rank * slice;  // rows this block finishes
  constexpr int kRowLanes = kTile == 64 ? 16 : 32;                // lanes of a row in the epilogue, 4 columns each
  constexpr int kPassRows = kConsumerWarps * kWarp / kRowLanes;
  const int lane_column = threadIdx.x % kRowLanes * 4;
  const int column = first_column + lane_column;
  const bool real_column = lane_column < kTile && column < p.columns;
  float4 scale{}, bias{}, factor{};

  if (warp == kConsumerWarps) {
    const int ahead = min(count, S::kStages);
    auto stage = [&](int i) { return shared + i % S::kStages * S::kStageBytes; };
    auto load_weights = [&](int i) {
      sm90::expect_bytes(full + i % S::kStages, S::kStageBytes);
      sm90::load_box(stage(i) + kRowBox * kRowBytes, &weights, (begin + i) * kDepth, first_column, full + i % S::kStages);
    };
    const int part = kRowBox / share;  // input rows that this block fetches for all neighbours
    unsigned mask = 0;
    for (int i = 0; i < share; ++i) mask |= 1u << (rank + i * split);
    auto load_input = [&](int i) {
      char* to = stage(i) + neighbour * part * kRowBytes;
      if (share == 1) return sm90::load_box(to, &input, (begin + i) * kDepth, first_row, full + i % S::kStages);
      sm90::load_box_multicast(to, &input, (begin + i) * kDepth, first_row + neighbour * part, full + i % S::kStages, static_cast<uint16_t>(mask));
    };
    if (lane == 0) {
      for (int i = 0; i < ahead; ++i) load_weights(i);  // weights never change: no need to wait for the kernel before
      for (int i = ahead; i < count; ++i) sm90::prefetch_box(&weights, (begin + i) * kDepth, first_column);
      sm90::prefetch_map(&input);
    }
    __syncwarp();
    if (clustered) sm90::cluster_wait();
    if (lane == 0) {
      wait_for_previous();
      for (int i = 0; i < ahead; ++i) load_input(i);
      for (int i = ahead; i < count; ++i) {
        sm90::wait(empty + i % S::kStages, (i / S::kStages - 1) & 1);
        load_weights(i);
        load_input(i);
      }
    }
  } else {
    if (real_column) {
      bias = *reinterpret_cast<const float4*>(p.bias + column);
      if (kFormat != Format::half) scale = *reinterpret_cast<const float4*>(p.scale + column);
      if (has_norms(kEpilogue)) factor = *reinterpret_cast<const float4*>(p.factor + column);
    }
    // Mean and scale of this block's rows, 2 to 16 threads each: fetched while the first boxes are on their way, combined later.
    wait_for_previous();
    const int row_threads = kConsumers / slice, norm_row = threadIdx.x / row_threads;
    const int norm_row_index = min(first_row + slice_begin + norm_row, rows - 1);
    TileStats tile_stats;
    if (kTile == 64 && has_norms(kEpilogue)) tile_stats = load_stats(p.stats, norm_row_index, 0, row_threads);  // wider tiles lack the registers

    Sum acc[kTile / 2];
#pragma unroll
    for (int i = 0; i < kTile / 2; ++i) acc[i] = 0;
    const int group = warp / 4;
    for (int i = 0; i < count; ++i) {
      const int s = i % S::kStages;
      const char* a = shared + s * S::kStageBytes + group * 64 * kRowBytes;
      const char* b = shared + s * S::kStageBytes + kRowBox * kRowBytes;
      sm90::wait(full + s, (i / S::kStages) & 1);
      const uint64_t da = sm90::descriptor<kRowBytes>(a), db = sm90::descriptor<kRowBytes>(b);
      sm90::pin(acc);
      sm90::multiply_fence();
#pragma unroll
      for (int k = 0; k < kRowBytes / 32; ++k) sm90::multiply<kTile, kFormat>(acc, da + 2 * k, db + 2 * k, true);  // + 2: 32 bytes
      sm90::multiply_commit();
      sm90::pin(acc);
      sm90::multiply_wait<1>();
      if (i > 0) {
        if (share > 1) {
          if (lane < share) sm90::arrive_remote(empty + (i - 1) % S::kStages, rank + lane * split);
        } else if (lane == 0) {
          sm90::arrive(empty + (i - 1) % S::kStages);
        }
      }
    }
    // Only now: blocks of the next product that come earlier take bandwidth from this one (0.78 ms against 0.81, BERT-large b1 S128).
    let_next_start();
    sm90::multiply_wait<0>();
    sm90::pin(acc);
    sm90::named_barrier(1, kConsumers);  // both warpgroups have read the last stage
    const int tile_row = warp * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      Sum* to = partial + tile_row * S::kPitch + 8 * j + 2 * (lane % 4);
      *reinterpret_cast<Two<Sum>*>(to) = {acc[4 * j], acc[4 * j + 1]};
      *reinterpret_cast<Two<Sum>*>(to + 8 * S::kPitch) = {acc[4 * j + 2], acc[4 * j + 3]};
    }
    sm90::async_fence();
    sm90::named_barrier(1, kConsumers);
    if (clustered) sm90::cluster_wait();
    if (S::kSplits && lane == 0 && warp < split && warp != rank) {  // one warp a receiver: the copies start side by side
      const int to = warp, slot = rank - (rank > to);
      sm90::send(received + slot * slice * S::kPitch, partial + to * slice * S::kPitch, slice * S::kPitch * 4, complete, to + neighbour * split);
    }
    // While the partial sums travel: fetch the residual and combine the row statistics.
    const int pass_row = threadIdx.x / kRowLanes;
    auto residual_of = [&](int r) {
      const int row = first_row + slice_begin + r;
      const bool real = kEpilogue == Epilogue::residual && r < slice && row < rows && real_column;
      return real ? __ldcg(reinterpret_cast<const uint2*>(p.residual + static_cast<size_t>(row) * p.columns + column)) : uint2{};
    };
    uint2 residual[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) residual[i] = residual_of(pass_row + i * kPassRows);
    if (kTile != 64 && has_norms(kEpilogue)) tile_stats = load_stats(p.stats, norm_row_index, 0, row_threads);
    if (has_norms(kEpilogue)) {
      const Norm my_norm = combine_loaded(p.stats, tile_stats, norm_row_index, kEpilogue == Epilogue::residual ? p.columns : p.depth, p.eps, row_threads);
      if (threadIdx.x % row_threads == 0) norms[norm_row] = my_norm;
    }
    sm90::named_barrier(1, kConsumers);
    if (S::kSplits && split > 1) sm90::wait(complete, 0);

    for (int base = 0; base < slice; base += kAhead * kPassRows) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int r = base + i * kPassRows + pass_row, row = first_row + slice_begin + r;
        if (base + i * kPassRows >= slice) continue;  // the same for the whole block: a slice is a multiple of kPassRows
        const bool real = row < rows && real_column;
        const int at = r * S::kPitch + min(lane_column, kTile - 4);
        const Four<Sum> own = *reinterpret_cast<const Four<Sum>*>(partial + slice_begin * S::kPitch + at);
        Sum v[4] = {own.x, own.y, own.z, own.w};
        if (S::kSplits) {
#pragma unroll
          for (int k = 0; k < kMaxSplit - 1; ++k) {
            if (k >= split - 1) break;
            const Four<Sum> other = *reinterpret_cast<const Four<Sum>*>(received + k * slice * S::kPitch + at);
            v[0] += other.x, v[1] += other.y, v[2] += other.z, v[3] += other.w;
          }
        }
        Norm norm{};
        if (has_norms(kEpilogue)) norm = norms[r];
        const float2 x01 = __half22float2(reinterpret_cast<const __half2*>(&residual[i])[0]);
        const float2 x23 = __half22float2(reinterpret_cast<const __half2*>(&residual[i])[1]);
        const auto done = [&](Sum sum, const Column& c, float x) { return finish<kFormat, kEpilogue>(sum, c, norm, x, p.inverse_scale); };
        const auto out01 = narrow_pair<kOut>(done(v[0], {scale.x, bias.x, factor.x}, x01.x), done(v[1], {scale.y, bias.y, factor.y}, x01.y));
        const auto out23 = narrow_pair<kOut>(done(v[2], {scale.z, bias.z, factor.z}, x23.x), done(v[3], {scale.w, bias.w, factor.w}, x23.y));
        if (real) *reinterpret_cast<Two<Pair<kOut>>*>(static_cast<Stored<kOut>*>(p.out) + static_cast<size_t>(row) * p.columns + column) = {out01, out23};
        if constexpr (kWritesStats<kFormat, kEpilogue>) {
          const float2 y01 = __half22float2(reinterpret_cast<const __half2&>(out01)), y23 = __half22float2(reinterpret_cast<const __half2&>(out23));
          const int width = min(kTile, p.columns - first_column);
          float sum = real ? y01.x + y01.y + y23.x + y23.y : 0.f;
#pragma unroll
          for (int step = kRowLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
          const float mean = sum / width;
          const float d0 = y01.x - mean, d1 = y01.y - mean, d2 = y23.x - mean, d3 = y23.y - mean;
          float squares = real ? d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3 : 0.f;
#pragma unroll
          for (int step = kRowLanes / 2; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
          if (real && lane_column == 0) p.out_stats.data[static_cast<size_t>(row) * p.out_stats.tiles + column_tile] = make_float2(mean, squares);
        }
      }
      if (base + kAhead * kPassRows < slice) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) residual[i] = residual_of(base + (kAhead + i) * kPassRows + pass_row);
      }
    }
  }
  // Nobody leaves while its partial sums are still being copied, or while others may signal its barriers.
  if (clustered) {
    __syncwarp();
    sm90::cluster_arrive();
    sm90::cluster_wait();
  }
#endif
}

using Kernel = void (*)(CUtensorMap, CUtensorMap, Product);

template <int kTile, Format kFormat>
Kernel eight_bit_kernel(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::residual: return product_split_kernel<kTile, kFormat, Epilogue::residual>;
    case Epilogue::bias: return product_split_kernel<kTile, kFormat, Epilogue::bias>;
    case Epilogue::gelu_tanh: return product_split_kernel<kTile, kFormat, Epilogue::gelu_tanh>;
    case Epilogue::gelu_erf: return product_split_kernel<kTile, kFormat, Epilogue::gelu_erf>;
    default: fail("8-bit products have no folded norm");
  }
}

template <int kTile>
Kernel kernel_of(Format format, Epilogue epilogue) {
  if (format == Format::int8) return eight_bit_kernel<kTile, Format::int8>(epilogue);
  if (format == Format::fp8) return eight_bit_kernel<kTile, Format::fp8>(epilogue);
  switch (epilogue) {
    case Epilogue::norm: return product_split_kernel<kTile, Format::half, Epilogue::norm>;
    case Epilogue::norm_gelu_tanh: return product_split_kernel<kTile, Format::half, Epilogue::norm_gelu_tanh>;
    case Epilogue::norm_gelu_erf: return product_split_kernel<kTile, Format::half, Epilogue::norm_gelu_erf>;
    case Epilogue::residual: return product_split_kernel<kTile, Format::half, Epilogue::residual>;
    default: fail("FP16 products have their bias in the folded norm");
  }
}

template <int kTile>
void prepare() {
  for (const Epilogue epilogue : {Epilogue::norm, Epilogue::norm_gelu_tanh, Epilogue::norm_gelu_erf, Epilogue::residual}) {
    allow_shared(kernel_of<kTile>(Format::half, epilogue), Shape<kTile>::kSharedBytes);
  }
  for (const Epilogue epilogue : {Epilogue::bias, Epilogue::gelu_tanh, Epilogue::gelu_erf, Epilogue::residual}) {
    allow_shared(kernel_of<kTile>(Format::int8, epilogue), Shape<kTile>::kSharedBytes);
    allow_shared(kernel_of<kTile>(Format::fp8, epilogue), Shape<kTile>::kSharedBytes);
  }
}

template <int kTile>
void start(cudaStream_t stream, const Variant& v, Format format, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights, Product p,
           int rows) {
  p.share = v.share;
  const int cluster = v.split * v.share;
  Launch shape{dim3(cluster, ceil_div(ceil_div(p.columns, kTile), v.share), ceil_div(rows, kRowBox)), dim3(kThreads), Shape<kTile>::kSharedBytes, cluster, true};
  launch(stream, shape, kernel_of<kTile>(format, epilogue), input, weights, p);
}

}  // namespace

void prepare_product_split() {
  prepare<64>();
  prepare<96>();
  prepare<128>();
}

void product_split(cudaStream_t stream, const Variant& variant, Format format, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                   const Product& product, int rows) {
  switch (variant.tile_columns) {
    case 64: return start<64>(stream, variant, format, epilogue, input, weights, product, rows);
    case 96: return start<96>(stream, variant, format, epilogue, input, weights, product, rows);
    case 128: return start<128>(stream, variant, format, epilogue, input, weights, product, rows);
    default: fail("there is no product kernel with tiles of ", variant.tile_columns, " columns");
  }
}

}  // namespace bert
