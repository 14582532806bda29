// SPDX-License-Identifier: Apache-2.0
// The SQuAD head: two logits a token.
#pragma once

#include <cuda_fp16.h>

#include "embedding.h"

namespace bert {

// logits (rows, 2) = x kernel^T + bias. kernel (2, hidden) and bias (2,) are float. Rows from *tokens on are left alone.
template <class T>
void head(cudaStream_t stream, const T* x, const float* kernel, const float* bias, float* logits, const int* tokens, int rows, int hidden);

// The same from rows stored before their LayerNorm; without statistics (no data) they are found here. For the Hopper path.
void head_of_sum(cudaStream_t stream, const __half* x, RowStats stats, const float* gamma, const float* beta, float eps, const float* kernel,
                 const float* bias, float* logits, const int* tokens, int rows, int hidden);

}  // namespace bert
