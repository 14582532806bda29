// SPDX-License-Identifier: Apache-2.0
// Residual + bias + LayerNorm: one block a row, the row in registers, FP32 statistics in two passes over the registers.
// Moves 3 values a column (product and residual in, result out), so its floor is 6 bytes x hidden x rows over the bandwidth.
#include <cuda_fp16.h>

#include "device.cuh"
#include "launch.h"
#include "layernorm.h"

namespace bert {

namespace {

constexpr int kThreads = 128;
constexpr int kVectors = 4;  // as in embedding.cu: hidden sizes up to 4096

// kFolded: gamma scales the residual on the way in, and the result is only normalised.
template <class T, bool kFolded>
__global__ void __launch_bounds__(kThreads) add_layernorm_kernel(const T* product, const float* bias, const T* residual, const float* gamma,
                                                                 const float* beta, T* out, float2* stats, const int* tokens, int hidden, float eps) {
  __shared__ float scratch[kThreads / kWarp];
  const auto column_of = [](int i) { return (i * kThreads + threadIdx.x) * 8; };
  const int row = blockIdx.x;
  if (row >= *tokens) return;
  const size_t base = static_cast<size_t>(row) * hidden;
  Eight x[kVectors];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = column_of(i);
    if (column >= hidden) break;
    const Eight a = load8(product + base + column), b = load8(bias + column), c = load8(residual + base + column);
    Eight factor;
    if (kFolded) factor = load8(gamma + column);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += x[i].v[j] = a.v[j] + b.v[j] + (kFolded ? c.v[j] * factor.v[j] : c.v[j]);
  }
  const float mean = block_sum<kThreads>(sum, scratch) / hidden;
  const float scale = rsqrtf(block_sum<kThreads>(squared_deviations(x, mean, hidden, column_of), scratch) / hidden + eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = column_of(i);
    if (column >= hidden) break;
    Eight g, b;
    if (!kFolded) g = load8(gamma + column), b = load8(beta + column);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float normal = (x[i].v[j] - mean) * scale;
      x[i].v[j] = kFolded ? normal : normal * g.v[j] + b.v[j];
    }
    store8(out + base + column, x[i]);
  }
  if (kFolded && threadIdx.x == 0) stats[row] = make_float2(0.f, static_cast<float>(hidden));
}

template <class T>
__global__ void gelu_erf_kernel(T* x, size_t vectors) {
  const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= vectors) return;
  Eight values = load8(x + i * 8);
#pragma unroll
  for (int j = 0; j < 8; ++j) values.v[j] = gelu_erf(values.v[j]);
  store8(x + i * 8, values);
}

}  // namespace

template <class T>
void add_layernorm(cudaStream_t stream, const T* product, const float* bias, const T* residual, const float* gamma, const float* beta, T* out,
                   const int* tokens, int rows, int hidden, float eps) {
  launch(stream, {dim3(rows), dim3(kThreads)}, add_layernorm_kernel<T, false>, product, bias, residual, gamma, beta, out, nullptr, tokens, hidden, eps);
}

void add_normalise(cudaStream_t stream, const __half* product, const float* bias, const __half* residual, const float* factor, __half* out,
                   RowStats stats, const int* tokens, int rows, int hidden, float eps) {
  launch(stream, {dim3(rows), dim3(kThreads)}, add_layernorm_kernel<__half, true>, product, bias, residual, factor, nullptr, out, stats.data, tokens,
         hidden, eps);
}

template <class T>
void gelu_erf_inplace(cudaStream_t stream, T* x, size_t count) {
  const size_t vectors = count / 8;
  launch(stream, {dim3(static_cast<unsigned>((vectors + 255) / 256)), dim3(256)}, gelu_erf_kernel<T>, x, vectors);
}

template void add_layernorm<float>(cudaStream_t, const float*, const float*, const float*, const float*, const float*, float*, const int*, int, int, float);
template void add_layernorm<__half>(cudaStream_t, const __half*, const float*, const __half*, const float*, const float*, __half*, const int*, int, int, float);
template void gelu_erf_inplace<float>(cudaStream_t, float*, size_t);
template void gelu_erf_inplace<__half>(cudaStream_t, __half*, size_t);

}  // namespace bert
