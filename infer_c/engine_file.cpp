// SPDX-License-Identifier: Apache-2.0
// Reads a safetensors file: 8 bytes of header length (little-endian), the header as JSON, the data. The format is
// described at https://huggingface.co/docs/safetensors.
#include "engine_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <utility>

#include "common.h"
#include "json.h"

namespace bert {

namespace {

constexpr char kMetadataKey[] = "demobert_engine";  // helpers/engine_file.py METADATA_KEY
constexpr int kFormat = 1;                          // helpers/engine_file.py FORMAT
constexpr uint64_t kMaxHeader = 100'000'000;        // the limit of the format's own library

// Bytes of a value; 0 of a type that no engine has.
size_t width_of(const std::string& dtype) { return dtype == "F32" ? 4 : dtype == "F16" ? 2 : dtype == "I8" || dtype == "U8" ? 1 : 0; }

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + ")";
}

int positive(const Json& number, const char* key) {
  const long long value = number.integer();
  if (value < 1 || value > std::numeric_limits<int>::max()) fail("the engine's ", key, " is ", value);
  return static_cast<int>(value);
}

std::vector<int> positives(const Json& list, const char* key) {
  std::vector<int> values;
  for (const Json& item : list.items()) values.push_back(positive(item, key));
  if (values.empty()) fail("the engine has no ", key);
  return values;
}

std::string one_of(const Json& object, const char* key, std::initializer_list<const char*> known) {
  const std::string& value = object.at(key).string();
  if (std::find(known.begin(), known.end(), value) == known.end()) fail("the engine's ", key, " \"", value, "\" is unknown here");
  return value;
}

// What the kernels of the cuda backend are written for; helpers/backends/cuda.py refuses to build others.
void check_kernels(const EngineInfo& info) {
  const Config& config = info.config;
  const int step = info.precision == "int8" || info.precision == "fp8" ? 16 : 8;
  if (config.hidden_size > 4096 || config.hidden_size % step != 0 || config.intermediate_size % step != 0) {
    fail("hidden_size ", config.hidden_size, " and intermediate_size ", config.intermediate_size, " are not multiples of ", step,
         ", or the first is above 4096, the most the cuda backend runs");
  }
  if (config.head_size() > 128) fail("heads of size ", config.head_size(), " are larger than 128, the most the cuda backend runs");
}

// Tensors begin where their type may, and none lies in another.
void check_places(const std::map<std::string, Tensor>& tensors) {
  std::vector<std::pair<const char*, const std::string*>> places;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.bytes > 0) places.emplace_back(static_cast<const char*>(tensor.data), &name);
  }
  std::stable_sort(places.begin(), places.end(), [](const auto& a, const auto& b) { return a.first < b.first; });  // else by name, as in the map
  for (size_t i = 0; i < places.size(); ++i) {
    const Tensor& tensor = tensors.at(*places[i].second);
    if (reinterpret_cast<uintptr_t>(tensor.data) % std::max<size_t>(width_of(tensor.dtype), 1) != 0) {
      fail("tensor ", *places[i].second, " of ", tensor.dtype, " begins between two values");
    }
    if (i + 1 < places.size() && places[i].first + tensor.bytes > places[i + 1].first) {
      fail("tensors ", *places[i].second, " and ", *places[i + 1].second, " overlap");
    }
  }
}

}  // namespace

EngineInfo parse_info(const std::string& metadata, const std::string& backend) {
  const Json root = Json::parse(metadata);
  if (root.at("format").integer() != kFormat) {
    fail("the engine has format ", root.at("format").integer(), ", this version reads format ", kFormat, "; build it again");
  }
  if (root.at("backend").string() != backend) fail("the engine was built for the ", root.at("backend").string(), " backend, not for ", backend);
  EngineInfo info;
  info.layout = one_of(root, "layout", {"padded", "packed"});
  info.precision = one_of(root, "precision", {"fp32", "bf16", "fp16", "int8", "fp8"});
  info.batch_sizes = positives(root.at("batch_sizes"), "batch_sizes");
  info.sequence_lengths = positives(root.at("sequence_lengths"), "sequence_lengths");
  const Json& model = root.at("config");
  Config& config = info.config;
  config.hidden_size = positive(model.at("hidden_size"), "hidden_size");
  config.num_hidden_layers = positive(model.at("num_hidden_layers"), "num_hidden_layers");
  config.num_attention_heads = positive(model.at("num_attention_heads"), "num_attention_heads");
  config.intermediate_size = positive(model.at("intermediate_size"), "intermediate_size");
  config.vocab_size = positive(model.at("vocab_size"), "vocab_size");
  config.max_position_embeddings = positive(model.at("max_position_embeddings"), "max_position_embeddings");
  config.type_vocab_size = positive(model.at("type_vocab_size"), "type_vocab_size");
  config.layer_norm_eps = static_cast<float>(model.at("layer_norm_eps").number());
  if (!(config.layer_norm_eps > 0) || std::isinf(config.layer_norm_eps)) fail("the engine's layer_norm_eps is ", model.at("layer_norm_eps").number());
  config.gelu_erf = one_of(model, "activation", {"gelu_erf", "gelu_tanh"}) == "gelu_erf";
  if (config.hidden_size % config.num_attention_heads != 0) {
    fail("hidden_size ", config.hidden_size, " cannot be shared by ", config.num_attention_heads, " heads");
  }
  if (info.max_length() > config.max_position_embeddings) {
    fail("the engine allows length ", info.max_length(), ", the model has ", config.max_position_embeddings, " positions");
  }
  return info;
}

int EngineInfo::max_batch() const { return *std::max_element(batch_sizes.begin(), batch_sizes.end()); }
int EngineInfo::max_length() const { return *std::max_element(sequence_lengths.begin(), sequence_lengths.end()); }

EngineFile::EngineFile(const std::string& path) : EngineFile() {  // whole from here on: a throw below runs the destructor
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail("the engine ", path, " cannot be opened (", std::strerror(errno), ")");
  struct stat status{};
  const bool known = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  bytes_ = known ? static_cast<size_t>(status.st_size) : 0;
  if (bytes_ >= 8) mapping_ = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, descriptor, 0);
  close(descriptor);
  if (bytes_ < 8) fail("the engine ", path, " is no file of at least 8 bytes");
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    fail("the engine ", path, " cannot be mapped (", std::strerror(errno), ")");
  }
  try {
    read_header();
  } catch (const Error& error) {
    fail("the engine ", path, " cannot be used: ", error.what());
  }
}

EngineFile::~EngineFile() {
  if (mapping_) munmap(mapping_, bytes_);
}

void EngineFile::read_header() {
  const char* base = static_cast<const char*>(mapping_);
  uint64_t length = 0;
  std::memcpy(&length, base, 8);
  if (length > kMaxHeader || length > bytes_ - 8) fail("its header of ", length, " bytes does not fit a file of ", bytes_);
  const Json header = Json::parse({base + 8, length});
  const char* data = base + 8 + length;
  const uint64_t room = bytes_ - 8 - length;
  bool found = false;
  for (const auto& [name, entry] : header.members()) {
    if (name == "__metadata__") {
      if (entry.has(kMetadataKey)) {
        info_ = parse_info(entry.at(kMetadataKey).string(), "cuda");
        check_kernels(info_);
        found = true;
      }
      continue;
    }
    Tensor tensor;
    tensor.dtype = entry.at("dtype").string();
    uint64_t count = 1;
    for (const Json& extent : entry.at("shape").items()) {
      const long long value = extent.integer();
      if (value < 0 || (value > 0 && count > kMaxHeader * 1000 / static_cast<uint64_t>(value))) fail("tensor ", name, " has an impossible shape");
      tensor.shape.push_back(value);
      count *= static_cast<uint64_t>(value);
    }
    const auto& offsets = entry.at("data_offsets").items();
    if (offsets.size() != 2) fail("tensor ", name, " has no pair of offsets");
    const long long begin = offsets[0].integer(), end = offsets[1].integer();
    if (begin < 0 || end < begin || static_cast<uint64_t>(end) > room) fail("tensor ", name, " lies outside the file");
    tensor.data = data + begin;
    tensor.bytes = static_cast<size_t>(end - begin);
    const size_t width = width_of(tensor.dtype);
    if (width != 0 && tensor.bytes != count * width) fail("tensor ", name, " has ", tensor.bytes, " bytes for ", count, " values of ", tensor.dtype);
    tensors_[name] = std::move(tensor);
  }
  check_places(tensors_);
  if (!found) fail("it has no engine metadata; build it with builder.py --backend cuda");
}

const Tensor& EngineFile::tensor(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail("the engine has no tensor ", name, "; build it again");
  const Tensor& tensor = found->second;
  if (tensor.dtype != dtype || tensor.shape != shape) {
    fail("the engine's tensor ", name, " is ", tensor.dtype, " ", shape_text(tensor.shape), " where ", dtype, " ", shape_text(shape), " is needed");
  }
  return tensor;
}

}  // namespace bert
