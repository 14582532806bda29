// SPDX-License-Identifier: Apache-2.0
// Residual + bias + LayerNorm in one pass, for the plain path.
#pragma once

#include "../common.h"

namespace bert {

// out (rows, hidden) = LayerNorm(product + bias + residual) * gamma + beta; out may be residual. Rows from *tokens on are left alone.
template <class T>
void add_layernorm(cudaStream_t stream, const T* product, const float* bias, const T* residual, const float* gamma, const float* beta, T* out,
                   const int* tokens, int rows, int hidden, float eps);

// x (rows, columns) = GELU of the erf form, in place: cuBLASLt's epilogue knows only the tanh form.
template <class T>
void gelu_erf_inplace(cudaStream_t stream, T* x, size_t count);

}  // namespace bert
