// SPDX-License-Identifier: Apache-2.0
// Weights on the device: each tensor is checked against the shape asked for, copied once, and owned here.
#pragma once

#include <cuda_fp16.h>

#include <string>
#include <type_traits>
#include <vector>

#include "common.h"
#include "engine_file.h"
#include "kernels/embedding.h"

namespace bert {

class Upload {
 public:
  explicit Upload(const EngineFile& file) : file_(file) {}

  // (rows, columns) of the engine's own type, and zeros up to a multiple of `group` rows.
  template <class T>
  T* matrix(const std::string& name, int rows, int columns, int group = 1) {
    return static_cast<T*>(bytes_of(name, std::is_same_v<T, float> ? "F32" : "F16", rows, columns, group));
  }
  void* bytes_of(const std::string& name, const char* dtype, int rows, int columns, int group = 1) {
    const Tensor& tensor = file_.tensor(name, dtype, {rows, columns});
    return copy(tensor.data, tensor.bytes, tensor.bytes / rows * round_up(rows, group));
  }
  float* vector(const std::string& name, int count) { return static_cast<float*>(copy(file_.tensor(name, "F32", {count}))); }
  float* vectors(const std::string& name, int rows, int columns) { return static_cast<float*>(copy(file_.tensor(name, "F32", {rows, columns}))); }

  // A float vector converted to T.
  template <class T>
  T* vector_as(const std::string& name, int count) {
    const Tensor& tensor = file_.tensor(name, "F32", {count});
    const float* values = static_cast<const float*>(tensor.data);
    std::vector<T> converted(values, values + count);
    return static_cast<T*>(copy(converted.data(), converted.size() * sizeof(T)));
  }

  // Uninitialised room beside the weights, for values derived from them.
  float* room(int count) { return reinterpret_cast<float*>(allocate(static_cast<size_t>(count) * sizeof(float))); }

  float* constant(int count, float value) {
    const std::vector<float> values(count, value);
    return static_cast<float*>(copy(values.data(), values.size() * sizeof(float)));
  }

  size_t bytes() const { return bytes_; }

 private:
  char* allocate(size_t bytes) {
    // One allocation for many tensors: 64 MB at a time, or the tensor's own size where that is more.
    const size_t rounded = (bytes + 255) / 256 * 256;
    if (blocks_.empty() || used_ + rounded > blocks_.back().bytes()) {
      blocks_.emplace_back(std::max<size_t>(rounded, 64 << 20));
      used_ = 0;
    }
    char* at = blocks_.back().data() + used_;
    used_ += rounded;
    bytes_ += rounded;
    return at;
  }
  void* copy(const Tensor& tensor) { return copy(tensor.data, tensor.bytes); }
  void* copy(const void* data, size_t bytes, size_t room = 0) {
    char* to = allocate(std::max(bytes, room));
    CUDA_CHECK(cudaMemcpy(to, data, bytes, cudaMemcpyHostToDevice));
    if (room > bytes) CUDA_CHECK(cudaMemset(to + bytes, 0, room - bytes));
    return to;
  }

  const EngineFile& file_;  // only while loading
  std::vector<Buffer<char>> blocks_;
  size_t used_ = 0, bytes_ = 0;
};

// The embedding tables, without their LayerNorm.
template <class T>
Embeddings<T> upload_embeddings(Upload& weights, const Config& config) {
  const int hidden = config.hidden_size;
  return {weights.matrix<T>("bert_embeddings_word_embeddings", config.vocab_size, hidden),
          weights.matrix<T>("bert_embeddings_position_embeddings", config.max_position_embeddings, hidden),
          weights.matrix<T>("bert_embeddings_token_type_embeddings", config.type_vocab_size, hidden), nullptr, nullptr};
}

// The SQuAD head.
struct HeadWeights {
  const float *kernel, *bias;  // (2, hidden), (2,)

  HeadWeights(Upload& weights, int hidden) : kernel(weights.vectors("cls_squad_output_weights", 2, hidden)), bias(weights.vector("cls_squad_output_bias", 2)) {}
};

}  // namespace bert
