// SPDX-License-Identifier: Apache-2.0
// The four matrix products of an encoder layer on Hopper, with everything between two products in their epilogues; sums in
// FP32 (INT32 for INT8).
//
// FP16: the LayerNorms are never run. A row x is stored before its norm together with its statistics, and with gamma and beta
// folded into the next kernel's weights W (fold.h)
//
//   LayerNorm(x) W^T + b = scale * (x W'^T - mean * sum(W')) + b',  W' = W gamma,  b' = b + W beta
//
// so a layer is five kernels (query-key-value, attention, output, intermediate, output) that touch each activation once.
//
// 8 bits: a product's input is rounded after its norm, so the norm has a kernel of its own (layernorm.h) that reads the stored
// row and writes 8 bits; the residual is still read as it was stored, and normalised here.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include <string>
#include <vector>

#include "embedding.h"
#include "format.h"

namespace bert {

enum class Epilogue {
  norm,            // FP16: out = scale * (sum - mean * factor) + bias: folded LayerNorm. Query, key and value
  norm_gelu_tanh,  // FP16: GELU of that. Intermediate product
  norm_gelu_erf,
  residual,        // out = sum + bias + (residual - mean) * scale * factor; in FP16 its statistics go to out_stats. Both outputs
  bias,            // 8 bits: out = sum + bias, FP16. Query, key and value
  gelu_tanh,       // 8 bits: GELU of that, 8 bits again. Intermediate product
  gelu_erf,
};

struct Product {
  const int* tokens;       // (), device
  int columns;             // N
  int depth;               // K
  void* out;               // (rows, columns): FP16; the product's own format for gelu_tanh and gelu_erf
  const float* bias;       // (columns,) b' of the folded norm; or bias + beta of the residual's norm; or just the bias
  const float* factor;     // (columns,) sum(W'); or gamma of the residual's norm
  RowStats stats;          // of the input rows (depth wide); or of the residual rows (columns wide)
  float eps;
  const __half* residual;  // (rows, columns), stored before its norm
  RowStats out_stats;      // only for Epilogue::residual in FP16
  const float* scale = nullptr;  // (columns,) 8 bits: what a sum of stored values is multiplied by
  float inverse_scale = 1;       // 8-bit output: stored value / value
  int share = 1;                 // Variant::share, set at the launch
};

constexpr int kRowBox = 128;  // rows of a tile

// One way to cut a product over the machine.
struct Variant {
  int tile_columns = 64;  // 64, 96, 128: tiles of 128 rows. 256: the persistent kernel. 0: cuBLASLt, for all products of a layer
  int split = 1;          // 1, 2, 4, 8 blocks share the depth of a tile of 64 columns
  int share = 1;          // 1, 2, 4 neighbouring tiles fetch their input together; split * share is at most 8.
                          // Persistent kernel: 2 or 4 blocks of a cluster fetch their weights together

  bool library() const { return tile_columns == 0; }
  bool persistent() const { return tile_columns == 256; }
  int box_rows() const { return persistent() ? 256 / share : tile_columns; }   // of the weights' tensor map
  int input_rows() const { return persistent() ? 64 : kRowBox / share; }       // of the activations'
  bool exists() const {
    const auto power = [](int n, int most) { return n == 1 || n == 2 || (n == 4 && most >= 4) || (n == 8 && most >= 8); };
    if (library()) return split == 1 && share == 1;
    if (persistent()) return split == 1 && (share == 2 || share == 4);
    if (!power(split, 8) || !power(share, 4) || split * share > 8) return false;
    return tile_columns == 64 || (split == 1 && (tile_columns == 96 || tile_columns == 128));
  }
  std::string name() const { return text(tile_columns, "/", split, "/", share); }
};

// Variants worth timing for a product of this size.
std::vector<Variant> variants(int rows, int columns, int boxes, int multiprocessors);  // boxes: 128 bytes of the depth each

// A tensor map over a row-major matrix: boxes of `box_rows` rows by `box_bytes` (128 or 64), swizzled over that width.
CUtensorMap matrix_map(const void* matrix, Format format, int rows, int columns, int box_rows, int box_bytes = 128);

// The tensor maps of one matrix, one for each height of box that a variant may ask for.
class BoxMaps {
 public:
  BoxMaps() = default;
  BoxMaps(const void* matrix, Format format, int rows, int columns);
  const CUtensorMap& of(int box_rows) const;

 private:
  static constexpr int kHeights[] = {32, 64, 96, 128};
  CUtensorMap maps_[4];
};

// Once per device, before the first launch.
void prepare_products();
void prepare_product_split();
void prepare_product_persistent();

void product_split(cudaStream_t stream, const Variant& variant, Format format, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                   const Product& product, int rows);
void product_persistent(cudaStream_t stream, const Variant& variant, Format format, Epilogue epilogue, const CUtensorMap& input,
                        const CUtensorMap& weights, const Product& product, int rows);

inline void product_sm90(cudaStream_t stream, const Variant& variant, Format format, Epilogue epilogue, const CUtensorMap& input,
                         const CUtensorMap& weights, const Product& product, int rows) {
  if (variant.persistent()) {
    product_persistent(stream, variant, format, epilogue, input, weights, product, rows);
  } else {
    product_split(stream, variant, format, epilogue, input, weights, product, rows);
  }
}

}  // namespace bert
