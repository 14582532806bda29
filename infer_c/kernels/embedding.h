// SPDX-License-Identifier: Apache-2.0
// Embedding lookup and its LayerNorm; and the layout of the row statistics that the Hopper products exchange.
#pragma once

#include <cuda_fp16.h>

#include "../common.h"
#include "../engine_file.h"
#include "format.h"

namespace bert {

// What a forward pass reads from the host, all int32 on the device. `tokens` is a device value, not a launch argument,
// so that one captured graph serves every mix of lengths in its bucket.
struct Inputs {
  const int* tokens;      // ()
  const int* cu_seqlens;  // (batch + 1,); entries after the last sequence repeat the last value
  const int* triples;     // (tokens, 3): id, segment, place within the sequence
};

// Statistics of rows that are stored before their LayerNorm: each row is cut into tiles of `width` columns, and each
// tile has its mean and its sum of squared deviations, (rows, tiles) pairs. Combined by the reader (Chan et al. 1979).
struct RowStats {
  float2* data;
  int tiles;
  int width;  // the last tile may be narrower
};

template <class T>
struct Embeddings {
  const T* word;       // (vocab, hidden)
  const T* position;   // (positions, hidden)
  const T* token_type; // (types, hidden)
  const float* gamma;  // (hidden,)
  const float* beta;   // (hidden,)
};

// out (rows, hidden) = LayerNorm(word + position + token type). Rows from *tokens on are left alone.
template <class T>
void embed(cudaStream_t stream, const Config& config, const Inputs& in, const Embeddings<T>& table, T* out, int rows);

// The same without the LayerNorm: out = the sum, stats = its statistics. For the Hopper path.
void embed_sum(cudaStream_t stream, const Config& config, const Inputs& in, const Embeddings<__half>& table, __half* out, RowStats stats, int rows);

// As embed_sum, and normal (rows, hidden) = LayerNorm(sum) * inverse_scale, rounded to 8 bits of `format`. sm_89 and newer.
void embed_quantise(cudaStream_t stream, const Config& config, const Inputs& in, const Embeddings<__half>& table, __half* out, RowStats stats,
                    Format format, float inverse_scale, uint8_t* normal, int rows);

}  // namespace bert
