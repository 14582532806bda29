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

#include <map>
#include <optional>
#include <vector>

#include "embedding.h"
#include "format.h"

namespace bert {

enum class Epilogue {
  norm,            // FP16: out = scale * (sum - mean * factor) + bias: folded LayerNorm. Query, key and value
  norm_gelu_tanh,  // FP16: GELU of that. Intermediate product
  norm_gelu_erf,
  residual,        // out = sum + bias + (residual - mean) * scale * factor; in FP16 its statistics go to out_stats. Both outputs
  bias,            // 8 bits: out = sum + bias; queries and keys in E4M3 (`narrow`), values in FP16
  gelu_tanh,       // 8 bits: GELU of that, 8 bits again. Intermediate product
  gelu_erf,
};

struct Product {
  const int* tokens;       // (), device
  int columns;             // N
  int depth;               // K
  void* out;               // (rows, columns): FP16; the product's own format for gelu_tanh and gelu_erf
  const float* bias;       // (columns,) b' of the folded norm, for norm_gelu_tanh half of it; or bias + beta of the residual's norm; or just the bias
  const float* factor;     // (columns,) sum(W'); or gamma of the residual's norm
  RowStats stats;          // of the input rows (depth wide); or of the residual rows (columns wide)
  float eps;
  const __half* residual;  // (rows, columns), stored before its norm
  RowStats out_stats;      // only for Epilogue::residual in FP16
  const float* scale = nullptr;  // (columns,) 8 bits: what a sum of stored values is multiplied by
  float inverse_scale = 1;       // 8-bit output of a GELU: stored value / value
  void* narrow_out = nullptr;    // (rows, narrow_columns), only for Epilogue::bias: its first columns in E4M3, as they are: their scale
  int narrow_columns = 0;        // and bias are in units of the stored values. A multiple of kColumnGroup; `out` then has the others only
  const void* next = nullptr;    // weights of the product after this one, for Variant::prefetch
  unsigned next_bytes = 0;       // a multiple of 16
  bool descending = false;       // persistent kernel: begin with the last rows, which a kernel that began with the first left in the L2 cache

  template <class Operand>
  void read_next(const Operand& o, Format format) {
    next = o.weights, next_bytes = static_cast<unsigned>(static_cast<size_t>(o.columns) * o.depth * bytes_of(format));
  }
};

constexpr int kRowBox = 128;         // rows that a choice of variants is made for together
constexpr int kNarrowestTile = 48;   // columns; a row has statistics for at most as many tiles as of these

// product_few_sm90.cuh, product_persistent_sm90.cu, cuBLASLt for all products of a layer
enum class Way { few, persistent, library };

// A tile of the persistent kernel: its two warpgroups take turns at tiles, or share each.
struct PersistentTile {
  int rows, columns;
  bool turns;
};
inline constexpr PersistentTile kPersistentTiles[] = {{64, 256, true}, {128, 192, true}, {128, 256, false}};

// One way to run a product.
struct Variant {
  Way way = Way::few;
  int tile_rows = 128, tile_columns = 64;
  int split = 1;       // blocks that share the depth of a tile
  int half_sums = 0;   // they send each other their sums in FP16
  int share = 1;       // neighbouring tiles that fetch their input together. Persistent kernel: blocks that fetch their weights together, 2
  int pair = 1;        // tiles, one below the other, that fetch their weights together
  int resident = 2;    // blocks of a multiprocessor, its own or a neighbour's: 2 get half of the shared memory each
  int early = 1;       // the next kernel may start 0: after the products, 1: before them, 2: once all of this one's blocks have
  int prefetch = 0;    // weights brought into the L2 cache 0: this product's that find no room yet, 1: and the next one's, 2: none

  static Variant persistent_of(const PersistentTile& tile) { return {Way::persistent, tile.rows, tile.columns, 1, 0, 2}; }
  static Variant of_library() { return {Way::library, 0, 0}; }
  bool has(const PersistentTile& tile) const { return tile_rows == tile.rows && tile_columns == tile.columns; }
  bool library() const { return way == Way::library; }
  int input_rows() const;  // of a box of the activations' tensor map
  int box_rows() const;    // of the weights'

  // As numbers, for JSON: [0, 1, 1] is the library, [256, k, 2] the persistent kernel with the k-th of kPersistentTiles; the rest
  // in the order of the members from tile_rows on, at least the first four of them.
  std::vector<int> numbers() const;
  static std::optional<Variant> from(const std::vector<int>& numbers);  // nothing for what does not exist
  bool exists(Format format, int boxes) const;                          // boxes: 128 bytes of the depth each
  bool operator==(const Variant& other) const { return numbers() == other.numbers(); }
};

// Every way to run the persistent kernel.
std::vector<Variant> persistent_variants();
// Variants worth timing for a product of this size.
std::vector<Variant> variants(Format format, int rows, int columns, int boxes, int multiprocessors);
// What to try of the best of them, always as many; some are the variant itself or do not exist.
std::vector<Variant> refinements(const Variant& variant);

constexpr int kColumnGroup = 32;  // columns of a result that grouped_map orders; weights have zero rows up to a multiple of them

// A tensor map over a row-major matrix: boxes of `box_rows` rows by `box_bytes` (128, 64 or 32), swizzled over that width.
CUtensorMap matrix_map(const void* matrix, Format format, int rows, int columns, int box_rows, int box_bytes = 128);

// A tensor map over weights (columns rounded up to kColumnGroup, depth), for boxes of `box_columns` (a multiple of kColumnGroup) by
// 128 bytes, in which columns 8 q + 2 i and + 1 of each group (q, i = 0 .. 3) stand at 8 i + 2 q and + 1: there, wgmma leaves the
// results of columns 8 q to 8 q + 7 in the registers of one thread. Its dimensions are the depth, 2 columns, q, i and the group.
CUtensorMap grouped_map(const void* weights, Format format, int columns, int depth, int box_columns);

// The map that a variant reads its weights through.
CUtensorMap weights_map(const void* weights, Format format, int columns, int depth, const Variant& variant);

// The tensor maps of one matrix, one for each height of box that a variant may ask for.
class BoxMaps {
 public:
  BoxMaps() = default;
  BoxMaps(const void* matrix, Format format, int rows, int columns);
  const CUtensorMap& of(int box_rows) const;
  static bool has(int box_rows) { return place_of(box_rows) < sizeof kHeights / sizeof *kHeights; }

 private:
  static constexpr int kHeights[] = {32, 48, 64, 72, 96, 104, 128, 192, 256};
  static size_t place_of(int box_rows);  // the number of heights for one that is not there
  CUtensorMap maps_[sizeof kHeights / sizeof *kHeights];
};

// Those of a product's weights, as BoxMaps and for the persistent kernel.
class WeightMaps {
 public:
  WeightMaps() = default;
  WeightMaps(const void* weights, Format format, int columns, int depth);
  const CUtensorMap& of(const Variant& variant) const;

 private:
  BoxMaps boxes_;
  std::map<int, CUtensorMap> grouped_;  // by the columns of a box
};

// Before the first launch of a format, on each device.
void prepare_products(Format format);
void prepare_product_few(Format format);
void prepare_product_persistent(Format format);

void product_few(cudaStream_t stream, const Variant& variant, Format format, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                 const Product& product, int rows);
void product_persistent(cudaStream_t stream, const Variant& variant, Format format, Epilogue epilogue, const CUtensorMap& input,
                        const CUtensorMap& weights, const Product& product, int rows);

inline void product_sm90(cudaStream_t stream, const Variant& variant, Format format, Epilogue epilogue, const CUtensorMap& input,
                         const CUtensorMap& weights, const Product& product, int rows) {
  if (variant.way == Way::persistent) {
    product_persistent(stream, variant, format, epilogue, input, weights, product, rows);
  } else {
    product_few(stream, variant, format, epilogue, input, weights, product, rows);
  }
}

}  // namespace bert
