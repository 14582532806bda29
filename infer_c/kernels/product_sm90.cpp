// SPDX-License-Identifier: Apache-2.0
// Host side of the Hopper products: tensor maps, variants as numbers, and which of them are worth timing.
#include "product_sm90.h"

#include <cuda.h>

#include <algorithm>

#include "product_few.h"

namespace bert {

namespace {

// extents and box: elements, the innermost dimension first; pitches: bytes, of all dimensions but that one.
CUtensorMap encode(const void* matrix, Format format, const std::vector<cuuint64_t>& extents, const std::vector<cuuint64_t>& pitches,
                   const std::vector<cuuint32_t>& box) {
  // Fetched through the runtime, so that nothing links against libcuda and the module loads on machines without a driver.
  static const auto encode_tiled = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) fail("the driver has no cuTensorMapEncodeTiled; install one for CUDA 12 or newer");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  CUtensorMap map{};
  const std::vector<cuuint32_t> steps(box.size(), 1);
  const unsigned box_bytes = box[0] * bytes_of(format);
  const CUtensorMapSwizzle swizzle = box_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : box_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                       : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUtensorMapDataType type = format == Format::half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const CUresult status = encode_tiled(&map, type, static_cast<cuuint32_t>(box.size()), const_cast<void*>(matrix), extents.data(), pitches.data(), box.data(),
                                       steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) fail("a tensor map of rows of ", extents[0], " values with boxes of ", box_bytes, " bytes was refused (", status, ")");
  return map;
}

}  // namespace

CUtensorMap matrix_map(const void* matrix, Format format, int rows, int columns, int box_rows, int box_bytes) {
  const cuuint64_t width = columns, pitch = width * bytes_of(format);
  return encode(matrix, format, {width, static_cast<cuuint64_t>(rows)}, {pitch},
                {static_cast<cuuint32_t>(box_bytes / bytes_of(format)), static_cast<cuuint32_t>(box_rows)});
}

CUtensorMap grouped_map(const void* weights, Format format, int columns, int depth, int box_columns) {
  const cuuint64_t width = depth, pitch = width * bytes_of(format), groups = ceil_div(columns, kColumnGroup);
  return encode(weights, format, {width, 2, 4, 4, groups}, {pitch, 8 * pitch, 2 * pitch, kColumnGroup * pitch},
                {static_cast<cuuint32_t>(kLineBytes / bytes_of(format)), 2, 4, 4, static_cast<cuuint32_t>(box_columns / kColumnGroup)});
}

BoxMaps::BoxMaps(const void* matrix, Format format, int rows, int columns) {
  for (size_t i = 0; i < std::size(kHeights); ++i) maps_[i] = matrix_map(matrix, format, rows, columns, kHeights[i]);
}

size_t BoxMaps::place_of(int box_rows) { return std::find(std::begin(kHeights), std::end(kHeights), box_rows) - std::begin(kHeights); }

const CUtensorMap& BoxMaps::of(int box_rows) const {
  const size_t place = place_of(box_rows);
  if (place == std::size(kHeights)) fail("there is no tensor map with boxes of ", box_rows, " rows");
  return maps_[place];
}

CUtensorMap weights_map(const void* weights, Format format, int columns, int depth, const Variant& variant) {
  if (variant.way == Way::persistent) return grouped_map(weights, format, columns, depth, variant.box_rows());
  return matrix_map(weights, format, columns, depth, variant.box_rows());
}

WeightMaps::WeightMaps(const void* weights, Format format, int columns, int depth) : boxes_(weights, format, columns, depth) {
  for (const Variant& v : persistent_variants()) {
    if (grouped_.count(v.box_rows()) == 0) grouped_[v.box_rows()] = weights_map(weights, format, columns, depth, v);
  }
}

const CUtensorMap& WeightMaps::of(const Variant& variant) const {
  return variant.way == Way::persistent ? grouped_.at(variant.box_rows()) : boxes_.of(variant.box_rows());
}

int Variant::input_rows() const { return way == Way::persistent ? tile_rows : tile_rows / share; }
int Variant::box_rows() const { return way == Way::persistent ? tile_columns / share : tile_columns / pair; }

std::vector<Variant> persistent_variants() {
  std::vector<Variant> all;
  for (const PersistentTile& tile : kPersistentTiles) all.push_back(Variant::persistent_of(tile));
  return all;
}

std::vector<int> Variant::numbers() const {
  if (way == Way::library) return {0, 1, 1};
  if (way == Way::persistent) {
    int tile = 0;
    while (!has(kPersistentTiles[tile])) ++tile;
    return {256, tile + 1, share};
  }
  return {tile_rows, tile_columns, split, half_sums, share, pair, resident, early, prefetch};
}

std::optional<Variant> Variant::from(const std::vector<int>& n) {
  if (n == std::vector<int>{0, 1, 1}) return of_library();
  if (n.size() == 3 && n[0] == 256 && n[1] >= 1 && n[1] <= static_cast<int>(std::size(kPersistentTiles)) && n[2] == 2) {
    return persistent_of(kPersistentTiles[n[1] - 1]);
  }
  Variant v;
  int* const members[] = {&v.tile_rows, &v.tile_columns, &v.split, &v.half_sums, &v.share, &v.pair, &v.resident, &v.early, &v.prefetch};
  if (n.size() < 4 || n.size() > std::size(members)) return {};  // three numbers: an older version's tiles
  for (size_t i = 0; i < n.size(); ++i) *members[i] = n[i];
  return v;
}

Cut cut_of(const Variant& v) { return {v.tile_rows, v.tile_columns, v.split, v.half_sums != 0}; }

bool Variant::exists(Format format, int boxes) const {
  if (library()) return format == Format::half;
  if (way == Way::persistent) return true;
  const auto among = [](int x, std::initializer_list<int> list) { return std::find(list.begin(), list.end(), x) != list.end(); };
  const auto compiled = [&](const auto& cuts) { return std::find(std::begin(cuts), std::end(cuts), cut_of(*this)) != std::end(cuts); };
  if (!(format == Format::half ? compiled(kHalfCuts) : compiled(kEightBitCuts)) || !among(half_sums, {0, 1})) return false;
  if (!among(share, {1, 2, 4}) || !among(pair, {1, 2}) || share + pair > 5 || split * share * pair > 8) return false;
  if (!among(resident, {1, 2, 3}) || !among(early, {0, 1, 2}) || !among(prefetch, {0, 1, 2})) return false;
  if (!BoxMaps::has(input_rows()) || !BoxMaps::has(box_rows())) return false;
  return split <= boxes && few_launch(*this, boxes).stages > 0;
}

FewLaunch few_launch(const Variant& v, int boxes) {
  const Cut c = cut_of(v);
  const int count = ceil_div(boxes, c.split), room = (228 / v.resident - 1) * 1024 - c.side_bytes();
  const int apart = std::min(count, (room - c.received_bytes()) / c.stage_bytes()), over = std::min(count, room / c.stage_bytes());
  // The price of reuse is one more barrier of the cluster, so only for want of stages.
  const bool reuse = c.split > 1 && apart < std::min(count, 4) && over > apart && over * c.stage_bytes() >= c.received_bytes();
  const int stages = std::min(reuse ? over : apart, kMaxStages);
  FewLaunch launch{v.share, v.pair, v.early, v.prefetch, stages < std::min(count, 2) ? 0 : stages, reuse, v.input_rows(), v.box_rows(), 0, 0};
  for (int i = 0; i < v.share; ++i) launch.input_mask |= 1u << i * v.split;
  for (int i = 0; i < v.pair; ++i) launch.weights_mask |= 1u << i * v.share * v.split;
  return launch;
}

namespace {

// Estimated us. An H200 gives 7 TB/s from its L2; a multiprocessor takes in 110 bytes/ns, sends 28, and multiplies at 1.9 GHz.
// 2.1 us for the launch, the first box and the epilogue. Multicast earns less than it saves: measured, half.
double estimate(const Variant& v, int rows, int columns, int boxes, int multiprocessors) {
  const Cut c = cut_of(v);
  const FewLaunch launch = few_launch(v, boxes);
  const int blocks = ceil_div(rows, c.rows) * ceil_div(columns, c.columns) * c.split, count = ceil_div(boxes, c.split);
  const int at_once = v.split * v.share * v.pair >= 4 ? std::max(1, multiprocessors / 8 * 8) : multiprocessors;  // clusters stay within a part of the chip
  const double waves = ceil_div(blocks, at_once * v.resident), beside = std::min(v.resident, ceil_div(blocks, at_once));
  const double bytes = count * kLineBytes, in = bytes * (c.rows + c.columns), l2 = bytes * (c.rows / v.share + c.columns / v.pair);
  const double multiply = count * 4 * (c.rows / 64) * std::max(c.columns / 2.0, 16 + c.columns / 4.0) / 1.9e3;
  const double stream = std::max({(l2 + in) / 2 * blocks / waves / 7e6, in * beside / 110e3, multiply * beside});
  const double sent = c.received_bytes() * (c.split - 1.0) / c.split;
  return 2.1 + waves * stream + waves * beside * sent / 28e3 + (c.split > 1 ? 0.3 : 0) + 0.2 * launch.reuse + 0.3 * (waves - 1);
}

}  // namespace

std::vector<Variant> variants(Format format, int rows, int columns, int boxes, int multiprocessors) {
  // Many rows: the persistent kernel, in FP16 also its nearest rival. A search through the rest would only cost time.
  const bool half = format == Format::half;
  std::vector<Variant> for_many = persistent_variants();
  if (rows > (half ? 4096 : 8 * kRowBox)) {
    if (half) for_many.push_back({Way::few, 128, 128, 1});
    return for_many;
  }
  std::vector<std::pair<double, Variant>> alone, shared;
  const auto consider = [&](const Cut& c) {
    const int row_tiles = ceil_div(rows, c.rows), column_tiles = ceil_div(columns, c.columns);
    for (const int share : {1, 2, 4}) {
      for (const int pair : {1, 2}) {
        // Half of the shared memory where that holds half of the boxes or saves a wave; the other way is a refinement.
        Variant v{Way::few, c.rows, c.columns, c.split, c.half_sums, share, pair};
        if (share > column_tiles || row_tiles % pair != 0) continue;
        const int count = ceil_div(boxes, c.split), stages = few_launch(v, boxes).stages;
        const bool one_wave = row_tiles * column_tiles * c.split <= multiprocessors;
        if (stages < (one_wave ? ceil_div(count, 2) : std::min(count, 3))) v.resident = 1;
        if (!v.exists(format, boxes)) continue;
        (share * pair == 1 ? alone : shared).push_back({estimate(v, rows, columns, boxes, multiprocessors), v});
      }
    }
  };
  if (half) {
    for (const Cut& c : kHalfCuts) consider(c);
  } else {
    for (const Cut& c : kEightBitCuts) consider(c);
  }
  std::vector<Variant> list;
  const auto take = [&](std::vector<std::pair<double, Variant>>& from, size_t most) {
    std::stable_sort(from.begin(), from.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 0; i < std::min(most, from.size()); ++i) list.push_back(from[i].second);
  };
  const bool many = rows > 8 * kRowBox;
  take(alone, many ? 3 : 10);
  take(shared, many ? 2 : 8);
  if (rows > kRowBox && ceil_div(rows, kRowBox) * ceil_div(columns, 256) * 4 >= multiprocessors) {
    list.insert(list.end(), for_many.begin(), for_many.end());
  }
  return list;
}

std::vector<Variant> refinements(const Variant& variant) {
  if (variant.way != Way::few) return {};
  std::vector<Variant> list;
  const auto with = [&](int Variant::* member, int value) {
    list.push_back(variant);
    list.back().*member = value;
  };
  for (const int prefetch : {0, 1, 2}) with(&Variant::prefetch, prefetch);
  for (const int early : {0, 1, 2}) with(&Variant::early, early);
  for (const int resident : {1, 2, 3}) with(&Variant::resident, resident);
  for (const int share : {1, 2, 4}) with(&Variant::share, share);
  for (const int pair : {1, 2}) with(&Variant::pair, pair);
  return list;
}

void prepare_products(Format format) {
  prepare_product_few(format);
  prepare_product_persistent(format);
}

}  // namespace bert
