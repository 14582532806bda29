// SPDX-License-Identifier: Apache-2.0
// Hopper attention for few sequences, where the walk over the keys takes longest: a block has 64 queries, and each of its
// warpgroups takes its own 128 keys at the same time as the others. Each weighs its keys against its own maxima; sums and contexts
// are scaled to those of all where they are added up at the end, through shared memory.
#include "attention_sm90.cuh"
#include "launch.h"

namespace bert::attention {

namespace {

constexpr int kKeys = 128;  // of a warpgroup
constexpr int kMaxGroups = kMaxBoxes * kTile / kKeys;

// Queries; keys and values, row maxima and row sums of each warpgroup.
template <int kHead, Format kFormat>
struct Layout {
  static constexpr int kQueryBytes = kTile * kKeyRow<kHead, kFormat>;
  static constexpr int kKeyBytes = kKeys * kKeyRow<kHead, kFormat>, kValueBytes = kKeys * kValueRow<kHead>, kGroupBytes = kKeyBytes + kValueBytes;  // of a warpgroup
  static_assert(kGroupBytes >= kTile * kHead * static_cast<int>(sizeof(float)), "its context takes their place");
  static constexpr size_t bytes(int groups) {
    return kQueryBytes + groups * (kGroupBytes + 2 * kTile * sizeof(float));
  }
};

template <int kHead, Format kFormat>
__global__ void __launch_bounds__(kMaxGroups * kGroup, 1)
    attention_split_kernel(const __grid_constant__ AttentionMaps maps, Stored<kFormat>* context, AttentionScales scales, const int* cu_seqlens, int heads) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  using Space = Layout<kHead, kFormat>;
  constexpr int kKeyRow = attention::kKeyRow<kHead, kFormat>, kValueRow = attention::kValueRow<kHead>;
  extern __shared__ __align__(1024) char shared[];
  __shared__ uint64_t query_ready;
  __shared__ uint64_t key_ready[kMaxGroups];
  __shared__ uint64_t value_ready[kMaxGroups];
  const int group = warp_index() / (kGroup / kWarp), hidden = heads * kHead;

  let_next_start();
  const int first = cu_seqlens[blockIdx.z], end = cu_seqlens[blockIdx.z + 1];
  if (threadIdx.x == 0) {  // while those are on their way
    sm90::prefetch_map(&maps.query_key);
    sm90::prefetch_map(&maps.value);
    sm90::barrier_init(&query_ready, 1);
#pragma unroll
    for (int i = 0; i < kMaxGroups; ++i) sm90::barrier_init(key_ready + i, 1), sm90::barrier_init(value_ready + i, 1);
    sm90::barrier_init_fence();
  }
  __syncthreads();
  const int length = end - first, start = blockIdx.x * kTile;
  const int groups = (length + kKeys - 1) / kKeys;  // that have keys; the others leave
  if (start >= length || group >= groups) return;
  char* queries = shared;
  char* keys = shared + Space::kQueryBytes + group * Space::kGroupBytes;
  char* values = keys + Space::kKeyBytes;
  float* maxima = reinterpret_cast<float*>(shared + Space::kQueryBytes + groups * Space::kGroupBytes);  // (groups, 64)
  float* sums = maxima + groups * kTile;                                                                // (groups, 64)
  wait_for_previous();
  if (threadIdx.x % kGroup == 0) {
    const int column = blockIdx.y * kHead, row = first + group * kKeys;
    if (group == 0) {
      sm90::expect_bytes(&query_ready, Space::kQueryBytes);
      sm90::load_box(queries, &maps.query_key, column, first + start, &query_ready);
    }
    const auto load = [&](char* to, const CUtensorMap& map, int from, int bytes, uint64_t* ready) {
      sm90::expect_bytes(ready, bytes);
      for (int i = 0; i < kKeys / kTile; ++i) sm90::load_box(to + i * (bytes / (kKeys / kTile)), &map, from, row + i * kTile, ready);
    };
    load(keys, maps.query_key, hidden + column, Space::kKeyBytes, key_ready + group);
    load(values, maps.value, maps.value_column + column, Space::kValueBytes, value_ready + group);
  }

  const int thread = threadIdx.x % kGroup, row = thread / kWarp * 16 + thread % kWarp / 4;  // the first of this thread's two rows
  const float scale = score_scale<kHead>() * scales.score;
  float s[kKeys / 2];
  sm90::wait(&query_ready, 0);
  sm90::wait(key_ready + group, 0);
  const uint64_t q_at = sm90::descriptor<kKeyRow>(queries), k_at = sm90::descriptor<kKeyRow>(keys);
  sm90::multiply_box<kKeyRow / 32, kKeys, kKeyFormat<kFormat>>(s, q_at, k_at, false);
  sm90::multiply_wait<0>();
  sm90::pin(s);
  if ((group + 1) * kKeys > length) mask(s, length - group * kKeys);
  Rows most = row_max(s, {-INFINITY, -INFINITY});
  most.a *= scale, most.b *= scale;
  float out[kHead / 2];
  uint32_t weights[kKeys / 16][4];
  Rows sum{0, 0};
  // The tensor cores multiply the first weights while the next ones are found.
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    const auto& scores = reinterpret_cast<const float(&)[8]>(s[8 * k]);
    const Rows more = weigh(scores, reinterpret_cast<uint32_t(&)[1][4]>(weights[k]), scale, most);
    sum.a += more.a, sum.b += more.b;
    if (k == 0) sm90::wait(value_ready + group, 0);
    sm90::pin(out);
    sm90::multiply_fence();
    sm90::multiply_registers<kHead, true>(out, weights[k], sm90::descriptor<kValueRow>(values + k * 16 * kValueRow), k > 0);
    sm90::multiply_commit();
    sm90::pin(out);
  }
  sum = sm90::quad_sum(sum);
  sm90::multiply_wait<0>();
  sm90::pin(out);
#pragma unroll
  for (auto& operand : weights) sm90::keep(operand);

  Stored<kFormat>* to = context + static_cast<size_t>(first + start) * hidden + blockIdx.y * kHead;
  if (groups == 1) {
    store_tile<kHead, kFormat>(to, hidden, out, {__fdividef(scales.inverse_context, sum.a), __fdividef(scales.inverse_context, sum.b)}, length - start);
    return;
  }
  // Each warpgroup leaves its context where its keys and values were, eight columns (four values a thread) at a time, and adds up its part
  // of the columns of all.
  if (thread % 4 == 0) {
    sums[group * kTile + row] = sum.a, sums[group * kTile + row + 8] = sum.b;
    maxima[group * kTile + row] = most.a, maxima[group * kTile + row + 8] = most.b;
  }
  float4* mine = reinterpret_cast<float4*>(keys);
#pragma unroll
  for (int j = 0; j < kHead / 8; ++j) {
    mine[j * kGroup + thread] = make_float4(out[4 * j], out[4 * j + 1], out[4 * j + 2], out[4 * j + 3]);
  }
  sm90::named_barrier(1, groups * kGroup);
  Rows shares[kMaxGroups], factor{0, 0};
  most = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < kMaxGroups; ++i) {
    if (i >= groups) continue;
    shares[i] = {maxima[i * kTile + row], maxima[i * kTile + row + 8]};
    most.a = fmaxf(most.a, shares[i].a), most.b = fmaxf(most.b, shares[i].b);
  }
#pragma unroll
  for (int i = 0; i < kMaxGroups; ++i) {
    if (i >= groups) continue;
    shares[i] = {exp2_fast(shares[i].a - most.a), exp2_fast(shares[i].b - most.b)};
    factor.a += sums[i * kTile + row] * shares[i].a, factor.b += sums[i * kTile + row + 8] * shares[i].b;
  }
  factor = {__fdividef(scales.inverse_context, factor.a), __fdividef(scales.inverse_context, factor.b)};
  to += static_cast<size_t>(row) * hidden + 2 * (thread % 4);
  for (int j = group; j < kHead / 8; j += groups) {
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kMaxGroups; ++i) {
      if (i >= groups) continue;
      const float4 d = reinterpret_cast<const float4*>(shared + Space::kQueryBytes + i * Space::kGroupBytes)[j * kGroup + thread];
      total.x += d.x * shares[i].a, total.y += d.y * shares[i].a, total.z += d.z * shares[i].b, total.w += d.w * shares[i].b;
    }
    const auto store = [&](int below, float a, float b, float f) {
      if (start + row + below >= length) return;
      *reinterpret_cast<Pair<kFormat>*>(to + below * hidden + 8 * j) = narrow_pair<kFormat>(a * f, b * f);
    };
    store(0, total.x, total.y, factor.a);
    store(8, total.z, total.w, factor.b);
  }
#endif
}

template <int kHead, Format kFormat>
void start(cudaStream_t stream, const AttentionMaps& maps, void* context, const AttentionScales& scales, const int* cu_seqlens, const AttentionShape& shape) {
  using Space = Layout<kHead, kFormat>;
  constexpr auto kernel = attention_split_kernel<kHead, kFormat>;
  static std::atomic<unsigned long long> allowed{0};
  allow_shared_once(kernel, Space::bytes(kMaxGroups), allowed);
  const int groups = ceil_div(shape.max_seqlen, kKeys);
  Launch launch_shape{dim3(ceil_div(shape.max_seqlen, kTile), shape.heads, shape.batch), dim3(groups * kGroup), Space::bytes(groups)};
  launch_shape.overlap = true;
  launch(stream, launch_shape, kernel, maps, static_cast<Stored<kFormat>*>(context), scales, cu_seqlens, shape.heads);
}

}  // namespace

void run_split(cudaStream_t stream, const AttentionMaps& maps, void* context, Format format, const AttentionScales& scales, const int* cu_seqlens,
               const AttentionShape& shape) {
  with_constants(shape.head_size, format, [&](auto head, auto stored) {
    start<decltype(head)::value, decltype(stored)::value>(stream, maps, context, scales, cu_seqlens, shape);
  });
}

}  // namespace bert::attention
