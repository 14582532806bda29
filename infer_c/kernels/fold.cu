// SPDX-License-Identifier: Apache-2.0
// One block a row of the weights. The sums are those of the rounded FP16 weights, so that the mean of a row cancels exactly.
#include "device.cuh"
#include "fold.h"
#include "launch.h"

namespace bert {

namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) fold_kernel(__half* weights, const float* gamma, const float* beta, float* sums, float* bias, int depth) {
  __shared__ float scratch[kThreads / kWarp];
  __half* row = weights + static_cast<size_t>(blockIdx.x) * depth;
  float sum = 0, shift = 0;
  for (int i = threadIdx.x; i < depth; i += kThreads) {
    const float w = __half2float(row[i]);
    const __half folded = __float2half_rn(w * gamma[i]);
    shift += w * beta[i];
    sum += __half2float(folded);
    row[i] = folded;
  }
  sum = block_sum<kThreads>(sum, scratch);
  shift = block_sum<kThreads>(shift, scratch);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    bias[blockIdx.x] += shift;
  }
}

__global__ void narrow_kernel(const float* a, __half* out, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = __float2half_rn(a[i]);
}

__global__ void scale_kernel(float* x, float factor, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) x[i] *= factor;
}

__global__ void add_kernel(const float* a, const float* b, float* out, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = a[i] + b[i];
}

}  // namespace

void fold(cudaStream_t stream, __half* weights, const float* gamma, const float* beta, float* sums, float* bias, int columns, int depth) {
  launch(stream, {dim3(columns), dim3(kThreads)}, fold_kernel, weights, gamma, beta, sums, bias, depth);
}

void narrow(cudaStream_t stream, const float* a, __half* out, int count) {
  launch(stream, {dim3(ceil_div(count, 256)), dim3(256)}, narrow_kernel, a, out, count);
}

void scale(cudaStream_t stream, float* x, float factor, int count) {
  launch(stream, {dim3(ceil_div(count, 256)), dim3(256)}, scale_kernel, x, factor, count);
}

void add(cudaStream_t stream, const float* a, const float* b, float* out, int count) {
  launch(stream, {dim3(ceil_div(count, 256)), dim3(256)}, add_kernel, a, b, out, count);
}

}  // namespace bert
