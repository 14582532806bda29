// SPDX-License-Identifier: Apache-2.0
// Embedding lookup: word + position + token type, then LayerNorm, or the sum and its row statistics, or these and its LayerNorm in 8 bits.
// One block a token; a row stays in registers between the passes, so each byte is read and written once.
#include "device.cuh"
#include "embedding.h"
#include "launch.h"
#include "quantise.cuh"

namespace bert {

namespace {

constexpr int kThreads = 128;
constexpr int kVectors = 4;  // 8 columns each: hidden sizes up to 128 * 4 * 8 = 4096

// kNormalise: `out` is what comes out of the LayerNorm. kBits: unless Format::half, `normal` is that in 8 bits.
template <class T, bool kNormalise, Format kBits>
__global__ void __launch_bounds__(kThreads)
    embed_kernel(Inputs in, Embeddings<T> table, Config config, T* out, RowStats stats, float inverse_scale, uint8_t* normal) {
  __shared__ float scratch[kThreads / kWarp];
  const auto column_of = [](int i) { return (i * kThreads + threadIdx.x) * 8; };
  let_next_start();
  const int row = blockIdx.x, hidden = config.hidden_size;
  if (row >= *in.tokens) return;
  wait_for_previous();  // `out` may still be read by the run before
  // The host checks ids and segments; clamping keeps a damaged input from reading outside the tables.
  const int id = min(max(in.triples[3 * row], 0), config.vocab_size - 1);
  const int segment = min(max(in.triples[3 * row + 1], 0), config.type_vocab_size - 1);
  const int position = min(in.triples[3 * row + 2], config.max_position_embeddings - 1);
  Eight x[kVectors];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = column_of(i);
    if (column >= hidden) break;
    const Eight a = load8(table.word + static_cast<size_t>(id) * hidden + column);
    const Eight b = load8(table.position + static_cast<size_t>(position) * hidden + column);
    const Eight c = load8(table.token_type + static_cast<size_t>(segment) * hidden + column);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      x[i].v[j] = a.v[j] + b.v[j] + c.v[j];
      if (!kNormalise) x[i].v[j] = to_float(from_float<T>(x[i].v[j]));  // the statistics are those of the stored values
      sum += x[i].v[j];
    }
  }
  const float mean = block_sum<kThreads>(sum, scratch) / hidden;
  const float squares = block_sum<kThreads>(squared_deviations(x, mean, hidden, column_of), scratch);
  const float scale = rsqrtf(squares / hidden + config.layer_norm_eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = column_of(i);
    if (column >= hidden) break;
    if (kNormalise) {
      const Eight gamma = load8(table.gamma + column), beta = load8(table.beta + column);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i].v[j] = (x[i].v[j] - mean) * scale * gamma.v[j] + beta.v[j];
    }
    const size_t at = static_cast<size_t>(row) * hidden + column;
    store8(out + at, x[i]);
    if constexpr (kBits != Format::half) {
      store_normal<kBits>(normal + at, x[i], mean, scale, stored_units(table.gamma + column, inverse_scale), stored_units(table.beta + column, inverse_scale));
    }
  }
  // Equal means in every tile make the combined squared deviations the plain sum of the tiles' shares.
  if (!kNormalise && threadIdx.x < stats.tiles) {
    stats.data[static_cast<size_t>(row) * stats.tiles + threadIdx.x] = make_float2(mean, squares / stats.tiles);
  }
}

}  // namespace

template <class T>
void embed(cudaStream_t stream, const Config& config, const Inputs& in, const Embeddings<T>& table, T* out, int rows) {
  launch(stream, {dim3(rows), dim3(kThreads)}, embed_kernel<T, true, Format::half>, in, table, config, out, RowStats{}, 1.f, nullptr);
}

void embed_sum(cudaStream_t stream, const Config& config, const Inputs& in, const Embeddings<__half>& table, __half* out, RowStats stats, int rows) {
  launch(stream, {dim3(rows), dim3(kThreads)}, embed_kernel<__half, false, Format::half>, in, table, config, out, stats, 1.f, nullptr);
}

void embed_quantise(cudaStream_t stream, const Config& config, const Inputs& in, const Embeddings<__half>& table, __half* out, RowStats stats,
                    Format format, float inverse_scale, uint8_t* normal, int rows) {
  if (format == Format::half) fail("embeddings in FP16 are not quantised");
  const auto kernel = format == Format::int8 ? embed_kernel<__half, false, Format::int8> : embed_kernel<__half, false, Format::fp8>;
  launch(stream, {dim3(rows), dim3(kThreads)}, kernel, in, table, config, out, stats, inverse_scale, normal);
}

template void embed<float>(cudaStream_t, const Config&, const Inputs&, const Embeddings<float>&, float*, int);
template void embed<__half>(cudaStream_t, const Config&, const Inputs&, const Embeddings<__half>&, __half*, int);

}  // namespace bert
