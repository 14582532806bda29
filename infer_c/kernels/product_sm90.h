// SPDX-License-Identifier: Apache-2.0
// The four matrix products of an encoder layer on Hopper (FP16 in and out, FP32 inside), with everything between two
// products in their epilogues. The LayerNorms are never run: a row x is stored before its norm together with its
// statistics, and with gamma and beta folded into the next kernel's weights W (fold.h)
//
//   LayerNorm(x) W^T + b = scale * (x W'^T - mean * sum(W')) + b',  W' = W gamma,  b' = b + W beta
//
// so a layer is five kernels (query-key-value, attention, output, intermediate, output) that touch each activation once.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include <string>
#include <vector>

#include "embedding.h"

namespace bert {

enum class Epilogue {
  norm,            // out = scale * (acc - mean * factor) + bias: folded LayerNorm. Query, key and value
  norm_gelu_tanh,  // GELU of that. Intermediate product
  norm_gelu_erf,
  residual,        // out = acc + bias + (residual - mean) * scale * factor; its statistics go to out_stats. Both outputs
};

struct Product {
  const int* tokens;       // (), device
  int columns;             // N
  int depth;               // K
  __half* out;             // (rows, columns)
  const float* bias;       // (columns,) b' of the folded norm; or bias + beta of the residual's norm
  const float* factor;     // (columns,) sum(W'); or gamma of the residual's norm
  RowStats stats;          // of the input rows (depth wide); or of the residual rows (columns wide)
  float eps;
  const __half* residual;  // (rows, columns), stored before its norm
  RowStats out_stats;      // only for Epilogue::residual
  int share = 1;           // Variant::share, set at the launch
};

constexpr int kRowBox = 128;  // rows of a tile

// One way to cut a product over the machine.
struct Variant {
  int tile_columns = 64;  // 64, 96, 128: tiles of 128 rows. 256: the persistent kernel. 0: cuBLASLt, for all products of a layer
  int split = 1;          // 1, 2, 4, 8 blocks share the depth of a tile of 64 columns; 2 halves the persistent kernel's stages
  int share = 1;          // 1, 2, 4 neighbouring tiles fetch their input together; split * share is at most 8

  bool library() const { return tile_columns == 0; }
  bool persistent() const { return tile_columns == 256; }
  int box_rows() const { return persistent() ? 128 : tile_columns; }  // of the weights' tensor map
  int input_rows() const { return kRowBox / share; }                  // of the activations'
  int box_columns() const { return persistent() ? 64 / split : 64; }  // of both
  bool exists() const {
    const auto power = [](int n, int most) { return n == 1 || n == 2 || (n == 4 && most >= 4) || (n == 8 && most >= 8); };
    if (library()) return split == 1 && share == 1;
    if (!power(split, 8) || !power(share, 4) || split * share > 8) return false;
    return tile_columns == 64 || (split == 1 && (tile_columns == 96 || tile_columns == 128)) || (persistent() && split <= 2 && share == 1);
  }
  std::string name() const { return text(tile_columns, "/", split, "/", share); }
};

// Variants worth timing for a product of this size.
std::vector<Variant> variants(int rows, int columns, int depth, int multiprocessors);

// A tensor map over a row-major FP16 matrix: boxes of `box_rows` rows by 64 columns, 128-byte swizzle.
CUtensorMap matrix_map(const __half* matrix, int rows, int columns, int box_rows, int box_columns = 64);

// Once per device, before the first launch.
void prepare_products();
void product_split(cudaStream_t stream, const Variant& variant, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                   const Product& product, int rows);
void product_persistent(cudaStream_t stream, const Variant& variant, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                        const Product& product, int rows, int multiprocessors);
void prepare_product_split();
void prepare_product_persistent();

inline void product_sm90(cudaStream_t stream, const Variant& variant, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                         const Product& product, int rows, int multiprocessors) {
  if (variant.persistent()) {
    product_persistent(stream, variant, epilogue, input, weights, product, rows, multiprocessors);
  } else {
    product_split(stream, variant, epilogue, input, weights, product, rows);
  }
}

}  // namespace bert
