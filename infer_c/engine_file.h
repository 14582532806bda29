// SPDX-License-Identifier: Apache-2.0
// The engine file: one safetensors file with the weights and, in its header, the metadata that helpers/engine_file.py
// wrote. Maps the file, checks every size and place against it, and hands out tensors by name; knows nothing of the GPU.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace bert {

constexpr int kMostTokens = 1 << 30;  // of a batch: twice as many would not be an int
constexpr int kRevision = 2;          // of the tensors in engines and of the Python module; helpers/backends/cuda.py REVISION

// The shape of the encoder, with the names of bert_config.json.
struct Config {
  int hidden_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int intermediate_size = 0;
  int vocab_size = 0;
  int max_position_embeddings = 0;
  int type_vocab_size = 0;
  float layer_norm_eps = 1e-12f;
  bool gelu_erf = false;  // otherwise the tanh form

  int head_size() const { return hidden_size / num_attention_heads; }
};

struct EngineInfo {
  Config config;
  std::string layout;     // "padded" or "packed"
  std::string precision;  // "fp32", "fp16", "int8" or "fp8"
  std::vector<int> batch_sizes, sequence_lengths;

  int max_batch() const;
  int max_length() const;
};

// Parse the metadata that helpers/engine_file.py writes; throw Error when it is damaged or of another backend.
EngineInfo parse_info(const std::string& metadata, const std::string& backend);

struct Tensor {
  std::string dtype;  // "F16", "F32", "I8", "U8" as safetensors writes them
  std::vector<int64_t> shape;
  const void* data = nullptr;  // inside the mapping
  size_t bytes = 0;
};

class EngineFile {
 public:
  // Throw Error when the file cannot be read, is damaged, or is no cuda engine.
  explicit EngineFile(const std::string& path);
  ~EngineFile();
  EngineFile(const EngineFile&) = delete;
  EngineFile& operator=(const EngineFile&) = delete;

  const EngineInfo& info() const { return info_; }
  // Return a tensor after comparing its type and shape; both stand in the message when they differ.
  const Tensor& tensor(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape) const;

 private:
  EngineFile() = default;
  void read_header();

  void* mapping_ = nullptr;
  size_t bytes_ = 0;
  EngineInfo info_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace bert
