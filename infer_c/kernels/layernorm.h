// SPDX-License-Identifier: Apache-2.0
// Residual + bias + LayerNorm in one pass, where products come from a library.
#pragma once

#include <cuda_fp16.h>

#include "../common.h"
#include "embedding.h"
#include "format.h"

namespace bert {

// out (rows, hidden) = LayerNorm(product + bias + residual) * gamma + beta; out may be residual. Rows from *tokens on are left alone.
template <class T>
void add_layernorm(cudaStream_t stream, const T* product, const float* bias, const T* residual, const float* gamma, const float* beta, T* out,
                   const int* tokens, int rows, int hidden, float eps);

// For weights that hold their LayerNorm's gamma and beta (fold.h), rows are kept normalised and nothing more:
// out = normalise(product + bias + residual * factor), with bias and factor as in struct Product. `stats` gets one tile a row
// that says "mean 0, variance 1".
void add_normalise(cudaStream_t stream, const __half* product, const float* bias, const __half* residual, const float* factor, __half* out,
                   RowStats stats, const int* tokens, int rows, int hidden, float eps);

// Rows x as they were stored before their LayerNorm -> 8 bits for a product: out (rows, hidden) = LayerNorm(x) * inverse_scale,
// rounded to `format`. `stats` gets one tile a row, so that x can still be read as a residual. `descending`: as in Product, of many
// rows. sm_89 and newer; hidden to 4096.
void quantise_layernorm(cudaStream_t stream, Format format, const __half* x, const float* gamma, const float* beta, float inverse_scale, void* out,
                        RowStats stats, const int* tokens, int rows, int hidden, float eps, bool descending = false);

// x (rows, columns) = GELU of the erf form, in place: cuBLASLt's epilogue knows only the tanh form.
template <class T>
void gelu_erf_inplace(cudaStream_t stream, T* x, size_t count);

}  // namespace bert
