// SPDX-License-Identifier: Apache-2.0
// Multi-head attention over packed sequences: softmax(Q K^T / sqrt(head size)) V, each sequence by itself.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

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

// The same on sm_90a for head sizes 32 and 64 and at most 512 tokens. `map` is the tensor map of qkv that attention_map makes
// once. `context` is stored as `format`, its values times `inverse_scale` (1 for FP16).
bool attention_sm90_fits(int head_size, int max_seqlen);
CUtensorMap attention_map(const __half* qkv, int rows, const AttentionShape& shape);
void attention_sm90(cudaStream_t stream, const CUtensorMap& map, void* context, Format format, float inverse_scale, const int* cu_seqlens,
                    const AttentionShape& shape);

}  // namespace bert
