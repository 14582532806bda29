// SPDX-License-Identifier: Apache-2.0
// Folds a LayerNorm's gamma and beta into the weights behind it, once, when an engine is loaded (product_sm90.h).
#pragma once

#include <cuda_fp16.h>

#include "../common.h"

namespace bert {

// In place: weights (columns, depth) *= gamma along the depth. sums (columns,) = sum of the new weights as they are stored,
// bias (columns,) += old weights . beta.
void fold(cudaStream_t stream, __half* weights, const float* gamma, const float* beta, float* sums, float* bias, int columns, int depth);

// out = a, in FP16: biases for a library's epilogue
void narrow(cudaStream_t stream, const float* a, __half* out, int count);

// x *= factor
void scale(cudaStream_t stream, float* x, float factor, int count);

// out = a + b
void add(cudaStream_t stream, const float* a, const float* b, float* out, int count);

}  // namespace bert
