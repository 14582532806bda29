// SPDX-License-Identifier: Apache-2.0
// Multi-head attention over packed sequences: softmax(Q K^T / sqrt(head size)) V, each sequence by itself.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "embedding.h"
#include "format.h"

namespace bert {

struct AttentionShape {
  int batch;
  int max_seqlen;  // no sequence is longer; the grid is sized for it
  int heads;
  int head_size;
};

// qkv (rows, 3 * heads * head_size) as [query | key | value], context (rows, heads * head_size). Any GPU, any head size to 128.
template <class T>
void attention_plain(cudaStream_t stream, const T* qkv, T* context, const int* cu_seqlens, const AttentionShape& shape);

// The same on sm_90a for head sizes 32 and 64 and at most 512 tokens. All is FP16; or queries and keys are E4M3, values FP16 and the
// context is of either 8-bit format. (Sums of INT8 products are whole numbers: to make floats of them took longer than INT8 saved.)
bool attention_sm90_fits(int head_size, int max_seqlen);

// What it reads, made once: tensor maps with boxes of a head's 64 rows.
struct AttentionMaps {
  CUtensorMap query_key;  // queries of all heads, then their keys
  CUtensorMap value;
  int value_column;  // of the first head, in its map
};
AttentionMaps attention_maps(const __half* qkv, int rows, const AttentionShape& shape);  // (rows, 3 * heads * head_size)
// query_key (rows, 2 * heads * head_size) in E4M3, value (rows, heads * head_size).
AttentionMaps attention_maps(const uint8_t* query_key, const __half* value, int rows, const AttentionShape& shape);

// How 8-bit tensors are to be read and written; for FP16 as it stands here.
struct AttentionScales {
  float score = 1.f;            // a product of real queries and keys / that of the stored ones
  float inverse_context = 1.f;  // stored value / value
};
void attention_sm90(cudaStream_t stream, const AttentionMaps& maps, void* context, Format format, const AttentionScales& scales, const int* cu_seqlens,
                    const AttentionShape& shape);

}  // namespace bert
