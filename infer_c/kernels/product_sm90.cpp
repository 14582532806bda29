// SPDX-License-Identifier: Apache-2.0
// Host side of the Hopper products: tensor maps, and which ways of cutting a product are worth timing.
#include "product_sm90.h"

#include <cuda.h>

namespace bert {

CUtensorMap matrix_map(const void* matrix, Format format, int rows, int columns, int box_rows, int box_bytes) {
  // Fetched through the runtime, so that nothing links against libcuda and the module loads on machines without a driver.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) fail("the driver has no cuTensorMapEncodeTiled; install one for CUDA 12 or newer");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  CUtensorMap map{};
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const int bytes = bytes_of(format);
  const cuuint64_t pitch[] = {static_cast<cuuint64_t>(columns) * bytes};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_bytes / bytes), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUtensorMapSwizzle swizzle = box_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUtensorMapDataType type = format == Format::half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const CUresult status = encode(&map, type, 2, const_cast<void*>(matrix), extents, pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) fail("a tensor map of ", rows, " x ", columns, " with boxes of ", box_rows, " x ", box_bytes, " bytes was refused (", status, ")");
  return map;
}

BoxMaps::BoxMaps(const void* matrix, Format format, int rows, int columns) {
  for (int i = 0; i < 4; ++i) maps_[i] = matrix_map(matrix, format, rows, columns, kHeights[i]);
}

const CUtensorMap& BoxMaps::of(int box_rows) const {
  for (int i = 0; i < 4; ++i) {
    if (kHeights[i] == box_rows) return maps_[i];
  }
  fail("there is no tensor map with boxes of ", box_rows, " rows");
}

std::vector<Variant> variants(int rows, int columns, int boxes, int multiprocessors) {
  std::vector<Variant> list;
  const int row_tiles = ceil_div(rows, kRowBox);
  // Many rows: the persistent kernel, or its nearest rival. A search through the rest would only cost time.
  if (rows > 4096) return {{256, 1, 2}, {256, 1, 4}, {128, 1, 1}};
  for (const int tile_columns : {64, 96, 128}) {
    const int column_tiles = ceil_div(columns, tile_columns), tiles = row_tiles * column_tiles;
    for (const int split : {1, 2, 4, 8}) {
      for (const int share : {1, 2}) {  // 4 exists and was never the fastest
        const Variant v{tile_columns, split, share};
        if (!v.exists() || split > boxes || share > column_tiles) continue;
        // Splitting pays only while the blocks fit on the machine at once (two a multiprocessor); 16 waves never do.
        if (tiles * split > (split > 1 ? 2 : 16) * multiprocessors) continue;
        if (tiles * split * 8 < multiprocessors) continue;  // nor does an eighth of the machine
        list.push_back(v);
      }
    }
  }
  if (row_tiles > 1 && row_tiles * ceil_div(columns, 256) * 4 >= multiprocessors) list.insert(list.end(), {{256, 1, 2}, {256, 1, 4}});
  return list;
}

void prepare_products() {
  prepare_product_split();
  prepare_product_persistent();
}

}  // namespace bert
