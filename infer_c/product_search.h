// SPDX-License-Identifier: Apache-2.0
// How the four products of a layer are cut over the machine, for each size class of rows: found by timing whole passes,
// because a product in its place (weights from memory, neighbours overlapping) differs from one alone; remembered as JSON.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "json.h"
#include "kernels/product_sm90.h"

namespace bert {

constexpr int kProducts = 4;  // of a layer: query-key-value, attention output, intermediate, output

struct ProductSize {
  int columns;
  int boxes;  // 128 bytes of the depth each
};

class ProductSearch {
 public:
  using Choice = std::array<Variant, kProducts>;

  ProductSearch(const Config& config, Format format);  // for the current device

  // What was found for this many rows, or a fair guess.
  Choice at(int rows) const;

  // The largest of the row counts that share a choice with this one.
  static int row_key(int rows);

  // Whether this size class was searched, here or by an earlier run.
  bool knows(int rows) const { return choices_.count(row_key(rows)) != 0; }

  // Search, unless this size class was searched before: `pass` enqueues a pass with what at(rows) returns. `library`: try
  // cuBLASLt's products too, last.
  void run(cudaStream_t stream, int rows, const std::function<void()>& pass, bool library);

  std::string json() const;
  // What another version remembered and this one does not know is left out, and so is what is damaged: it is searched again.
  // Throw ArgumentError where it is no JSON object.
  void read(const std::string& json);

 private:
  void search(cudaStream_t stream, int rows, const std::function<void()>& pass, bool library);
  std::optional<Choice> known(const Json& list) const;
  Variant guess(int rows, int product) const;

  Format format_;
  std::array<ProductSize, kProducts> sizes_;
  int multiprocessors_;
  std::map<int, Choice> choices_;  // by row_key
};

}  // namespace bert
