// SPDX-License-Identifier: Apache-2.0
// Hopper attention: which of the two kernels runs. Only limits of the launch decide, so a CUDA graph stays valid for all
// batches within them.
#include "attention_sm90.cuh"
#include "launch.h"
#include "product_sm90.h"

namespace bert {

bool attention_sm90_fits(int head_size, int max_seqlen) {
  return (head_size == 32 || head_size == 64) && max_seqlen <= attention::kMaxBoxes * attention::kTile;
}

AttentionMaps attention_maps(const __half* qkv, int rows, const AttentionShape& shape) {
  const int hidden = shape.heads * shape.head_size;
  const CUtensorMap all = matrix_map(qkv, Format::half, rows, 3 * hidden, attention::kTile, 2 * shape.head_size);
  return {all, all, 2 * hidden};
}

AttentionMaps attention_maps(const uint8_t* query_key, const __half* value, int rows, const AttentionShape& shape) {
  const int hidden = shape.heads * shape.head_size;
  return {matrix_map(query_key, Format::fp8, rows, 2 * hidden, attention::kTile, shape.head_size),
          matrix_map(value, Format::half, rows, hidden, attention::kTile, 2 * shape.head_size), 0};
}

void attention_sm90(cudaStream_t stream, const AttentionMaps& maps, void* context, Format format, const AttentionScales& scales, const int* cu_seqlens,
                    const AttentionShape& shape) {
  if (!attention_sm90_fits(shape.head_size, shape.max_seqlen)) {
    fail("the Hopper attention has no kernel for head size ", shape.head_size, " and ", shape.max_seqlen, " tokens");
  }
  const int multiprocessors = multiprocessor_count();
  // The split kernel wins for as long as its blocks run in two waves. A multiprocessor holds four blocks of one warpgroup, which
  // is what 128 tokens need, and one or two of longer sequences.
  const int64_t blocks = static_cast<int64_t>(shape.batch) * shape.heads * ceil_div(shape.max_seqlen, attention::kTile);
  if (blocks <= (shape.max_seqlen <= 128 ? 8 : 2) * multiprocessors) {
    attention::run_split(stream, maps, context, format, scales, cu_seqlens, shape);
  } else {
    attention::run_stream(stream, maps, context, format, scales, cu_seqlens, shape, multiprocessors);
  }
}

}  // namespace bert
