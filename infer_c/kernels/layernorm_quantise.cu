// SPDX-License-Identifier: Apache-2.0
// LayerNorm into 8 bits, where the next product reads 8 bits. Many rows: a warp a row, the row in registers, gamma and beta in
// registers too while a warp goes from row to row, each fetched while the two before are worked on: with one, too few bytes would be
// under way for the bandwidth. Moves 3 bytes a value: its floor is 3 bytes x hidden x rows over the bandwidth. Few rows, where only
// the time of one counts: a block a row.
#include "device.cuh"
#include "launch.h"
#include "layernorm.h"
#include "quantise.cuh"

namespace bert {

namespace {

constexpr int kWarps = 4;   // of a block
constexpr int kBlocks = 3;  // of a multiprocessor

// kVectors: 8 columns a lane each. kKeep: gamma, beta and the next two rows stay in registers.
template <Format kFormat, int kVectors, bool kKeep>
__global__ void __launch_bounds__(kWarps * kWarp, kKeep ? kBlocks : 1)
    quantise_layernorm_kernel(const __half* x, const float* gamma, const float* beta, float inverse_scale, uint8_t* out, float2* stats, const int* tokens,
                              int hidden, float eps, bool descending) {
  const int lane = threadIdx.x % kWarp;
  const float share = 1.f / hidden;
  const auto column_of = [&](int i) { return (i * kWarp + lane) * 8; };
  let_next_start();
  Eight g[kKeep ? kVectors : 1], b[kKeep ? kVectors : 1];
  if (kKeep) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (column_of(i) < hidden) g[i] = stored_units(gamma + column_of(i), inverse_scale), b[i] = stored_units(beta + column_of(i), inverse_scale);
    }
  }
  const int rows = *tokens;
  wait_for_previous();
  const int step = gridDim.x * kWarps;
  constexpr int kAhead = kKeep ? 2 : 1;
  uint4 next[kAhead][kVectors];
  const auto place_of = [&](int row) { return static_cast<size_t>(descending ? rows - 1 - row : row); };
  const auto fetch = [&](int slot, int row) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (row < rows && column_of(i) < hidden) next[slot][i] = __ldcg(reinterpret_cast<const uint4*>(x + place_of(row) * hidden + column_of(i)));
    }
  };
  const int first = blockIdx.x * kWarps + threadIdx.x / kWarp;
#pragma unroll
  for (int slot = 0; slot < kAhead; ++slot) fetch(slot, first + slot * step);
  for (int turn = first; turn < rows; turn += kAhead * step) {
#pragma unroll
    for (int slot = 0; slot < kAhead; ++slot) {
      const int row = turn + slot * step;
      if (row >= rows) return;
      const size_t base = place_of(row) * hidden;
      Eight v[kVectors];
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) v[i] = widen8(next[slot][i]);
      if (kKeep) fetch(slot, row + kAhead * step);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (column_of(i) >= hidden) break;
#pragma unroll
        for (int j = 0; j < 8; ++j) sum += v[i].v[j];
      }
      const float mean = warp_sum(sum) * share;
      const float squares = warp_sum(squared_deviations(v, mean, hidden, column_of));
      const float scale = rsqrtf(squares * share + eps);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (column_of(i) >= hidden) break;
        const Eight gi = kKeep ? g[kKeep ? i : 0] : stored_units(gamma + column_of(i), inverse_scale);
        const Eight bi = kKeep ? b[kKeep ? i : 0] : stored_units(beta + column_of(i), inverse_scale);
        store_normal<kFormat>(out + base + column_of(i), v[i], mean, scale, gi, bi);
      }
      if (lane == 0) stats[place_of(row)] = make_float2(mean, squares);
      if (!kKeep) fetch(slot, row + kAhead * step);
    }
  }
}

// Rows that many blocks of this kernel hold at once; more are done faster by the warps of the other.
constexpr int kFewRows = 1024;
constexpr int kThreads = 128, kMostVectors = 4;  // hidden sizes to 4096

// kVectors: 8 columns a thread each. What counts is the latency of one row: the loads go out together and the threads meet once.
template <Format kFormat, int kVectors>
__global__ void __launch_bounds__(kThreads)
    quantise_layernorm_few_kernel(const __half* x, const float* gamma, const float* beta, float inverse_scale, uint8_t* out, float2* stats, const int* tokens,
                                  int hidden, float eps) {
  __shared__ float2 scratch[kThreads / kWarp];
  const float share = __fdividef(1.f, static_cast<float>(hidden));
  const auto column_of = [&](int i) { return (i * kThreads + static_cast<int>(threadIdx.x)) * 8; };
  let_next_start();
  const int row = blockIdx.x;
  if (row >= *tokens) return;
  Eight g[kVectors]{}, b[kVectors]{};  // they do not depend on the kernel before
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (column_of(i) < hidden) g[i] = stored_units(gamma + column_of(i), inverse_scale), b[i] = stored_units(beta + column_of(i), inverse_scale);
  }
  wait_for_previous();
  const size_t base = static_cast<size_t>(row) * hidden;
  uint4 raw[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) raw[i] = __ldcg(reinterpret_cast<const uint4*>(x + base + min(column_of(i), hidden - 8)));
  const float origin = __half2float(__ldcg(x + base));
  Eight v[kVectors];
  float2 sums{};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    v[i] = widen8(raw[i]);
    if (column_of(i) < hidden) add_differences(sums, v[i], origin);
  }
  sums = warp_sum(sums);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = sums;
  __syncthreads();
  sums = {};
#pragma unroll
  for (const float2& s : scratch) sums.x += s.x, sums.y += s.y;
  const float mean = origin + sums.x * share, squares = fmaxf(sums.y - sums.x * sums.x * share, 0.f), scale = rsqrtf(squares * share + eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (column_of(i) < hidden) store_normal<kFormat>(out + base + column_of(i), v[i], mean, scale, g[i], b[i]);
  }
  if (threadIdx.x == 0) stats[row] = make_float2(mean, squares);
}

template <Format kFormat>
void start(cudaStream_t stream, const __half* x, const float* gamma, const float* beta, float inverse_scale, void* out, RowStats stats, const int* tokens,
           int rows, int hidden, float eps, bool descending) {
  if (rows <= kFewRows) {
    Launch shape{dim3(rows), dim3(kThreads)};
    shape.overlap = true;
    const auto kernel = hidden <= 8 * kThreads ? quantise_layernorm_few_kernel<kFormat, 1> : quantise_layernorm_few_kernel<kFormat, kMostVectors>;
    return launch(stream, shape, kernel, x, gamma, beta, inverse_scale, static_cast<uint8_t*>(out), stats.data, tokens, hidden, eps);
  }
  const auto kernel = hidden <= 512    ? quantise_layernorm_kernel<kFormat, 2, true>
                      : hidden <= 768  ? quantise_layernorm_kernel<kFormat, 3, true>
                      : hidden <= 1024 ? quantise_layernorm_kernel<kFormat, 4, true>
                                       : quantise_layernorm_kernel<kFormat, 16, false>;
  Launch shape{dim3(std::min(ceil_div(rows, kWarps), multiprocessor_count() * kBlocks)), dim3(kWarps * kWarp)};
  shape.overlap = true;
  launch(stream, shape, kernel, x, gamma, beta, inverse_scale, static_cast<uint8_t*>(out), stats.data, tokens, hidden, eps, descending);
}

}  // namespace

void quantise_layernorm(cudaStream_t stream, Format format, const __half* x, const float* gamma, const float* beta, float inverse_scale, void* out,
                        RowStats stats, const int* tokens, int rows, int hidden, float eps, bool descending) {
  if (format == Format::int8) return start<Format::int8>(stream, x, gamma, beta, inverse_scale, out, stats, tokens, rows, hidden, eps, descending);
  if (format == Format::fp8) return start<Format::fp8>(stream, x, gamma, beta, inverse_scale, out, stats, tokens, rows, hidden, eps, descending);
  fail("a LayerNorm into FP16 is not quantised");
}

}  // namespace bert
