// SPDX-License-Identifier: Apache-2.0
// Attention for every GPU, both precisions and any head size up to 128: FP32 arithmetic on the ordinary units, online
// softmax (Milakov and Gimelshein 2018) over tiles of 32 keys. The yardstick of the fast kernel, not a rival to it.
#include "attention.h"
#include "device.cuh"
#include "launch.h"

namespace bert {

namespace {

constexpr int kWarps = 8;   // one query each
constexpr int kKeys = 32;   // a tile of keys: one a lane
constexpr int kMaxHead = 128;

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) attention_kernel(const T* qkv, T* context, const int* cu_seqlens, int heads, int head_size) {
  __shared__ float keys[kKeys][kMaxHead + 1];  // + 1: lanes read down a column
  __shared__ float values[kKeys][kMaxHead];
  __shared__ float queries[kWarps][kMaxHead];
  const int first = cu_seqlens[blockIdx.z], length = cu_seqlens[blockIdx.z + 1] - first;
  if (blockIdx.x * kWarps >= length) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int query = blockIdx.x * kWarps + warp, hidden = heads * head_size;
  const T* base = qkv + static_cast<size_t>(first) * 3 * hidden + blockIdx.y * head_size;  // this head's query of token 0
  const float scale = rsqrtf(static_cast<float>(head_size));
  for (int d = lane; d < head_size; d += kWarp) {
    queries[warp][d] = query < length ? to_float(base[static_cast<size_t>(query) * 3 * hidden + d]) * scale : 0.f;
  }
  float maximum = -INFINITY, sum = 0, out[kMaxHead / kWarp] = {};
  for (int start = 0; start < length; start += kKeys) {
    __syncthreads();
    for (int i = threadIdx.x; i < kKeys * head_size; i += kWarps * kWarp) {
      const int key = i / head_size, d = i % head_size;
      const T* token = base + static_cast<size_t>(start + key) * 3 * hidden + d;
      keys[key][d] = start + key < length ? to_float(token[hidden]) : 0.f;
      values[key][d] = start + key < length ? to_float(token[2 * hidden]) : 0.f;
    }
    __syncthreads();
    float score = 0;
    for (int d = 0; d < head_size; ++d) score += queries[warp][d] * keys[lane][d];
    if (start + lane >= length) score = -INFINITY;
    const float larger = fmaxf(maximum, warp_max(score));  // finite: every tile has a key
    const float weight = expf(score - larger), shrink = expf(maximum - larger);
    maximum = larger;
    sum = sum * shrink + warp_sum(weight);
#pragma unroll
    for (int i = 0; i < kMaxHead / kWarp; ++i) out[i] *= shrink;
    for (int key = 0; key < kKeys; ++key) {
      const float w = __shfl_sync(~0u, weight, key);
#pragma unroll
      for (int i = 0; i < kMaxHead / kWarp; ++i) {
        if (lane + i * kWarp < head_size) out[i] += w * values[key][lane + i * kWarp];
      }
    }
  }
  if (query >= length) return;
  T* row = context + static_cast<size_t>(first + query) * hidden + blockIdx.y * head_size;
#pragma unroll
  for (int i = 0; i < kMaxHead / kWarp; ++i) {
    if (lane + i * kWarp < head_size) row[lane + i * kWarp] = from_float<T>(out[i] / sum);
  }
}

}  // namespace

template <class T>
void attention_plain(cudaStream_t stream, const T* qkv, T* context, const int* cu_seqlens, const AttentionShape& shape) {
  const dim3 grid(ceil_div(shape.max_seqlen, kWarps), shape.heads, shape.batch);
  launch(stream, {grid, dim3(kWarps * kWarp)}, attention_kernel<T>, qkv, context, cu_seqlens, shape.heads, shape.head_size);
}

template void attention_plain<float>(cudaStream_t, const float*, float*, const int*, const AttentionShape&);
template void attention_plain<__half>(cudaStream_t, const __half*, __half*, const int*, const AttentionShape&);

}  // namespace bert
