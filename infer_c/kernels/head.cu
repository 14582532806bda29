// SPDX-License-Identifier: Apache-2.0
// The SQuAD head: one warp a token, two dot products over the hidden size.
#include "device.cuh"
#include "head.h"
#include "launch.h"
#include "row_stats.cuh"

namespace bert {

namespace {

constexpr int kWarps = 4;

// Of a row that a warp goes over once more afterwards.
template <class T>
__device__ inline Norm row_norm(const T* row, int hidden, float eps) {
  const float origin = to_float(row[0]), share = 1.f / hidden;
  float2 sums{};
  for (int column = threadIdx.x % kWarp * 8; column < hidden; column += kWarp * 8) add_differences(sums, load8(row + column), origin);
  sums = warp_sum(sums);
  const float mean = sums.x * share;
  return {origin + mean, rsqrtf(fmaxf(sums.y * share - mean * mean, 0.f) + eps)};
}

template <class T, bool kNormalise>
__global__ void __launch_bounds__(kWarps* kWarp) head_kernel(const T* x, RowStats stats, const float* gamma, const float* beta, float eps,
                                                             const float* kernel, const float* bias, float* logits, const int* tokens, int hidden) {
  const int row = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (row >= *tokens) return;
  wait_for_previous();
  Norm norm{0.f, 1.f};
  if (kNormalise) norm = stats.data ? combine(stats, row, hidden, eps, kWarp) : row_norm(x + static_cast<size_t>(row) * hidden, hidden, eps);
  float start = 0, end = 0;
  for (int column = lane * 8; column < hidden; column += kWarp * 8) {
    Eight values = load8(x + static_cast<size_t>(row) * hidden + column);
    if (kNormalise) {
      const Eight g = load8(gamma + column), b = load8(beta + column);
#pragma unroll
      for (int j = 0; j < 8; ++j) values.v[j] = (values.v[j] - norm.mean) * norm.scale * g.v[j] + b.v[j];
    }
    const Eight k0 = load8(kernel + column), k1 = load8(kernel + hidden + column);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      start += values.v[j] * k0.v[j];
      end += values.v[j] * k1.v[j];
    }
  }
  start = warp_sum(start);
  end = warp_sum(end);
  if (lane == 0) reinterpret_cast<float2*>(logits)[row] = make_float2(start + bias[0], end + bias[1]);
}

}  // namespace

template <class T>
void head(cudaStream_t stream, const T* x, const float* kernel, const float* bias, float* logits, const int* tokens, int rows, int hidden) {
  launch(stream, {dim3(ceil_div(rows, kWarps)), dim3(kWarps * kWarp)}, head_kernel<T, false>, x, RowStats{}, nullptr, nullptr, 0.f, kernel, bias, logits,
         tokens, hidden);
}

void head_of_sum(cudaStream_t stream, const __half* x, RowStats stats, const float* gamma, const float* beta, float eps, const float* kernel,
                 const float* bias, float* logits, const int* tokens, int rows, int hidden) {
  Launch shape{dim3(ceil_div(rows, kWarps)), dim3(kWarps * kWarp)};
  shape.overlap = true;
  launch(stream, shape, head_kernel<__half, true>, x, stats, gamma, beta, eps, kernel, bias, logits, tokens, hidden);
}

template void head<float>(cudaStream_t, const float*, const float*, const float*, float*, const int*, int, int);
template void head<__half>(cudaStream_t, const __half*, const float*, const float*, float*, const int*, int, int);

}  // namespace bert
