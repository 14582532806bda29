// SPDX-License-Identifier: Apache-2.0
// Hopper attention for short sequences, head sizes 32 and 64. All keys and values of a head lie in shared memory (128 KB
// at most, for 512 tokens of head size 64), so nothing is fetched twice and the copy engine can run ahead of the first
// product. A warpgroup takes 64 queries and walks over the keys 64 at a time with online softmax in FP32; the weights go
// from the result registers of the first product straight into the operand registers of the second. (The queries stay in
// shared memory: as a loop-invariant register operand, ptxas 13.0 overwrites them with the weights.)
#include "attention.h"
#include "device.cuh"
#include "launch.h"
#include "product_sm90.h"
#include "quantise.cuh"
#include "wgmma.cuh"

namespace bert {

namespace {

constexpr int kKeys = 64;       // of one step; also the queries of a warpgroup
constexpr int kMaxSteps = 8;    // 512 tokens
constexpr int kGroup = 128;     // threads of a warpgroup

template <int kHead>
constexpr int kBoxBytes = kKeys * kHead * 2;

template <int kHead>
constexpr size_t shared_bytes(int steps, int groups) {
  return static_cast<size_t>(2 * steps + groups) * kBoxBytes<kHead> + (kMaxSteps + groups) * 8;
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t pack(float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  return reinterpret_cast<const uint32_t&>(h);
}

template <int kHead, Format kFormat>
__global__ void __launch_bounds__(2 * kGroup, 2)
    attention_kernel(const __grid_constant__ CUtensorMap map, Stored<kFormat>* context, float inverse_scale, const int* cu_seqlens, int heads,
                     int max_steps) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char shared[];
  char* keys = shared;                                      // (steps, 64, kHead)
  char* values = shared + max_steps * kBoxBytes<kHead>;     // (steps, 64, kHead)
  char* queries = values + max_steps * kBoxBytes<kHead>;    // (groups, 64, kHead)
  const int groups = blockDim.x / kGroup, group = warp_index() / (kGroup / kWarp);
  uint64_t* ready = reinterpret_cast<uint64_t*>(queries + groups * kBoxBytes<kHead>);  // keys and values of a step
  uint64_t* query_ready = ready + kMaxSteps + group;

  let_next_start();
  const int first = cu_seqlens[blockIdx.z], length = cu_seqlens[blockIdx.z + 1] - first;
  if (static_cast<int>(blockIdx.x) * groups * kKeys >= length) return;
  const int steps = ceil_div(length, kKeys), hidden = heads * kHead, head_column = blockIdx.y * kHead;
  if (threadIdx.x == 0) {
    for (int i = 0; i < steps; ++i) sm90::barrier_init(ready + i, 1);
    for (int i = 0; i < groups; ++i) sm90::barrier_init(ready + kMaxSteps + i, 1);
    sm90::barrier_init_fence();
  }
  __syncthreads();
  wait_for_previous();
  const int first_start = (blockIdx.x * groups + group) * kKeys, stride = gridDim.x * groups * kKeys;
  const auto load_queries = [&](int start) {
    if (threadIdx.x % kGroup != 0 || start >= length) return;
    sm90::expect_bytes(query_ready, kBoxBytes<kHead>);
    sm90::load_box(queries + group * kBoxBytes<kHead>, &map, head_column, first + start, query_ready);
  };
  load_queries(first_start);
  if (threadIdx.x == 0) {
    for (int i = 0; i < steps; ++i) {
      sm90::expect_bytes(ready + i, 2 * kBoxBytes<kHead>);
      sm90::load_box(keys + i * kBoxBytes<kHead>, &map, hidden + head_column, first + i * kKeys, ready + i);
      sm90::load_box(values + i * kBoxBytes<kHead>, &map, 2 * hidden + head_column, first + i * kKeys, ready + i);
    }
  }
  const int lane = threadIdx.x % kWarp, pair = 2 * (lane % 4);
  const float scale = rsqrtf(static_cast<float>(kHead)) * 1.4426950408889634f;  // softmax in base 2

  int turn = 0;
  for (int start = first_start; start < length; start += stride, ++turn) {
    const int row0 = start + threadIdx.x % kGroup / kWarp * 16 + lane / 4, row1 = row0 + 8;  // this thread's two queries
    sm90::wait(query_ready, turn & 1);
    const uint64_t q_at = sm90::descriptor<2 * kHead>(queries + group * kBoxBytes<kHead>);
    float out[kHead / 2];
#pragma unroll
    for (int i = 0; i < kHead / 2; ++i) out[i] = 0.f;
    float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0, sum1 = 0;

    for (int step = 0; step < steps; ++step) {
      float s[kKeys / 2];
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) s[i] = 0.f;
      sm90::wait(ready + step, 0);
      const uint64_t k_at = sm90::descriptor<2 * kHead>(keys + step * kBoxBytes<kHead>);
      sm90::pin(s);
      sm90::multiply_fence();
#pragma unroll
      for (int k = 0; k < kHead / 16; ++k) sm90::multiply<kKeys>(s, q_at + 2 * k, k_at + 2 * k, k > 0);
      sm90::multiply_commit();
      sm90::pin(s);
      sm90::multiply_wait<0>();
      sm90::pin(s);
      if (step + 1 == steps) {  // the queries have done their part: fetch the next ones
        sm90::named_barrier(1 + group, kGroup);
        load_queries(start + stride);
      }
      if ((step + 1) * kKeys > length) {
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i) {
          if (step * kKeys + i / 4 * 8 + pair + i % 2 >= length) s[i] = -INFINITY;
        }
      }
      float new0 = max0, new1 = max1;
#pragma unroll
      for (int i = 0; i < kKeys / 2; i += 4) {
        new0 = fmaxf(new0, fmaxf(s[i], s[i + 1]));
        new1 = fmaxf(new1, fmaxf(s[i + 2], s[i + 3]));
      }
#pragma unroll
      for (int i = 1; i < 4; i *= 2) {
        new0 = fmaxf(new0, __shfl_xor_sync(~0u, new0, i));
        new1 = fmaxf(new1, __shfl_xor_sync(~0u, new1, i));
      }
      // Every step has at least one key, so the maxima are finite from the first one on.
      const float shrink0 = exp2_fast((max0 - new0) * scale), shrink1 = exp2_fast((max1 - new1) * scale);
      max0 = new0, max1 = new1;
      const float base0 = new0 * scale, base1 = new1 * scale;
      sum0 *= shrink0, sum1 *= shrink1;
      uint32_t weights[kKeys / 16][4];
#pragma unroll
      for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float* d = s + 8 * k + 4 * h;
          const float w0 = exp2_fast(d[0] * scale - base0), w1 = exp2_fast(d[1] * scale - base0);
          const float w2 = exp2_fast(d[2] * scale - base1), w3 = exp2_fast(d[3] * scale - base1);
          sum0 += w0 + w1;
          sum1 += w2 + w3;
          weights[k][2 * h] = pack(w0, w1);
          weights[k][2 * h + 1] = pack(w2, w3);
        }
      }
#pragma unroll
      for (int i = 0; i < kHead / 2; i += 4) out[i] *= shrink0, out[i + 1] *= shrink0, out[i + 2] *= shrink1, out[i + 3] *= shrink1;
      const char* v_at = values + step * kBoxBytes<kHead>;
      sm90::pin(out);
      sm90::multiply_fence();
#pragma unroll
      for (int k = 0; k < kKeys / 16; ++k) {
        sm90::multiply_registers<kHead, true>(out, weights[k], sm90::descriptor<2 * kHead>(v_at + k * 16 * kHead * 2), true);
      }
      sm90::multiply_commit();
      sm90::pin(out);
      sm90::multiply_wait<0>();
      sm90::pin(out);
    }
#pragma unroll
    for (int i = 1; i < 4; i *= 2) sum0 += __shfl_xor_sync(~0u, sum0, i), sum1 += __shfl_xor_sync(~0u, sum1, i);
    const float inverse0 = inverse_scale / sum0, inverse1 = inverse_scale / sum1;
    Stored<kFormat>* c0 = context + static_cast<size_t>(first + row0) * hidden + head_column + pair;
#pragma unroll
    for (int j = 0; j < kHead / 8; ++j) {
      const float* d = out + 4 * j;
      if (row0 < length) *reinterpret_cast<Pair<kFormat>*>(c0 + 8 * j) = narrow_pair<kFormat>(d[0] * inverse0, d[1] * inverse0);
      if (row1 < length) {
        *reinterpret_cast<Pair<kFormat>*>(c0 + 8 * hidden + 8 * j) = narrow_pair<kFormat>(d[2] * inverse1, d[3] * inverse1);
      }
    }
  }
#endif
}

template <int kHead, Format kFormat>
void start(cudaStream_t stream, const CUtensorMap& map, void* context, float inverse_scale, const int* cu_seqlens, const AttentionShape& shape) {
  static const bool allowed = (allow_shared(attention_kernel<kHead, kFormat>, shared_bytes<kHead>(kMaxSteps, 2)), true);
  (void)allowed;
  const int steps = ceil_div(shape.max_seqlen, kKeys), pairs = shape.heads * shape.batch;
  // Few heads: spread the queries over many blocks. Many: let a block keep its keys and values for all queries.
  const int groups = pairs * ceil_div(steps, 2) < 132 ? 1 : 2;
  const int blocks = pairs >= 4 * 132 * 2 ? 1 : ceil_div(steps, groups);
  Launch launch_shape{dim3(blocks, shape.heads, shape.batch), dim3(groups * kGroup), shared_bytes<kHead>(steps, groups)};
  launch_shape.overlap = true;
  launch(stream, launch_shape, attention_kernel<kHead, kFormat>, map, static_cast<Stored<kFormat>*>(context), inverse_scale, cu_seqlens,
         shape.heads, steps);
}

template <int kHead>
void start(cudaStream_t stream, const CUtensorMap& map, void* context, Format format, float inverse_scale, const int* cu_seqlens,
           const AttentionShape& shape) {
  switch (format) {
    case Format::half: return start<kHead, Format::half>(stream, map, context, inverse_scale, cu_seqlens, shape);
    case Format::int8: return start<kHead, Format::int8>(stream, map, context, inverse_scale, cu_seqlens, shape);
    case Format::fp8: return start<kHead, Format::fp8>(stream, map, context, inverse_scale, cu_seqlens, shape);
  }
}

}  // namespace

bool attention_sm90_fits(int head_size, int max_seqlen) { return (head_size == 32 || head_size == 64) && max_seqlen <= kMaxSteps * kKeys; }

CUtensorMap attention_map(const __half* qkv, int rows, const AttentionShape& shape) {
  return matrix_map(qkv, Format::half, rows, 3 * shape.heads * shape.head_size, kKeys, 2 * shape.head_size);
}

void attention_sm90(cudaStream_t stream, const CUtensorMap& map, void* context, Format format, float inverse_scale, const int* cu_seqlens,
                    const AttentionShape& shape) {
  if (shape.head_size == 64) return start<64>(stream, map, context, format, inverse_scale, cu_seqlens, shape);
  if (shape.head_size == 32) return start<32>(stream, map, context, format, inverse_scale, cu_seqlens, shape);
  fail("the Hopper attention has no kernel for head size ", shape.head_size);
}

}  // namespace bert
