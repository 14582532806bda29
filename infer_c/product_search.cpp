// SPDX-License-Identifier: Apache-2.0
#include "product_search.h"

#include <cstdlib>

#include "json.h"

namespace bert {

std::array<ProductSize, kProducts> product_sizes(const Config& config, int box) {
  const int hidden = config.hidden_size, inner = config.intermediate_size, boxes = ceil_div(hidden, box);
  return {{{3 * hidden, boxes}, {hidden, boxes}, {inner, boxes}, {hidden, ceil_div(inner, box)}}};
}

int multiprocessor_count() {
  int device = 0, count = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Row counts that share a choice: by whole tiles up to 8, where each tile changes the picture, then by powers of two.
int ProductSearch::row_key(int rows) {
  if (rows <= 8 * kRowBox) return round_up(rows, kRowBox);
  int key = 8 * kRowBox;
  while (key < rows) key *= 2;
  return key;
}

ProductSearch::Choice ProductSearch::at(int rows) const {
  const auto found = choices_.find(row_key(rows));
  if (found != choices_.end()) return found->second;
  Choice choice;
  for (int i = 0; i < kProducts; ++i) choice[i] = guess(rows, sizes_[i]);
  return choice;
}

// Before any timing: fill the machine once, or the persistent kernel where there is enough for it.
Variant ProductSearch::guess(int rows, const ProductSize& size) const {
  const int row_tiles = ceil_div(rows, kRowBox);
  if (row_tiles * ceil_div(size.columns, 256) >= multiprocessors_) return {256, 1, 2};
  Variant v{64, 1, 1};
  while (v.split < 8 && row_tiles * ceil_div(size.columns, 64) * v.split * 2 <= multiprocessors_) v.split *= 2;
  while (v.split > size.boxes) v.split /= 2;
  return v;
}

void ProductSearch::run(int rows, const std::function<float()>& milliseconds, const std::function<void()>& warm) {
  const int key = row_key(rows);
  choices_[key] = at(rows);
  Choice& choice = choices_[key];
  // Each candidate is timed beside what it would replace: in passes of many rows the GPU grows hot and its clock falls, so
  // that times taken a second apart do not compare.
  const auto better = [&](const Choice& candidate) {
    const Choice before = choice;
    choice = candidate;
    const float ms = milliseconds();
    choice = before;
    if (ms < milliseconds()) choice = candidate;
  };
  for (int i = 0; i < kProducts; ++i) {
    for (const Variant& candidate : variants(rows, sizes_[i].columns, sizes_[i].boxes, multiprocessors_)) {
      if (candidate.name() == choice[i].name()) continue;
      Choice other = choice;
      other[i] = candidate;
      better(other);
    }
  }
  if (!warm) return;
  const Choice own = choice;
  choice.fill(Variant{0, 1, 1});
  const Choice library = choice;
  warm();
  choice = own;
  better(library);
}

std::string ProductSearch::json() const {
  std::string out = "{";
  for (const auto& [key, choice] : choices_) {
    out += (out.size() > 1 ? ", \"" : "\"") + std::to_string(key) + "\": [";
    for (int i = 0; i < kProducts; ++i) out += text(i ? ", " : "", "[", choice[i].tile_columns, ", ", choice[i].split, ", ", choice[i].share, "]");
    out += "]";
  }
  return out + "}";
}

void ProductSearch::read(const std::string& json) {
  const Json root = Json::parse(json);
  for (const auto& [key, list] : root.members()) {
    Choice choice;
    int count = 0;
    for (const Json& entry : list.items()) {
      const std::vector<Json>& n = entry.items();
      if (n.size() != 3 || count == kProducts) break;
      const Variant v{static_cast<int>(n[0].integer()), static_cast<int>(n[1].integer()), static_cast<int>(n[2].integer())};
      if (!v.exists() || (count > 0 && v.library() != choice[0].library())) break;  // cuBLASLt's all or none
      choice[count++] = v;
    }
    if (count == kProducts) choices_[std::atoi(key.c_str())] = choice;
  }
}

}  // namespace bert
