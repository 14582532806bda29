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
#include <cstring>
#include <limits>

#include "common.h"
#include "json.h"

namespace bert {

namespace {

constexpr char kMetadataKey[] = "demobert_engine";  // helpers/engine_file.py METADATA_KEY
constexpr int kFormat = 1;                          // helpers/engine_file.py FORMAT
constexpr uint64_t kMaxHeader = 100'000'000;        // the limit of the format's own library

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + ")";
}

int positive(const Json& object, const char* key) {
  const long long value = object.at(key).integer();
  if (value < 1 || value > std::numeric_limits<int>::max()) fail("the engine's ", key, " is ", value);
  return static_cast<int>(value);
}

std::vector<int> positives(const Json& object, const char* key) {
  std::vector<int> values;
  for (const Json& item : object.at(key).items()) values.push_back(static_cast<int>(item.integer()));
  if (values.empty() || *std::min_element(values.begin(), values.end()) < 1) fail("the engine's ", key, " are not all positive");
  return values;
}

}  // namespace

EngineInfo parse_info(const std::string& metadata, const std::string& backend) {
  const Json root = Json::parse(metadata);
  if (root.at("format").integer() != kFormat) {
    fail("the engine has format ", root.at("format").integer(), ", this version reads format ", kFormat, "; build it again");
  }
  if (root.at("backend").string() != backend) fail("the engine was built for the ", root.at("backend").string(), " backend, not for ", backend);
  EngineInfo info;
  info.layout = root.at("layout").string();
  info.precision = root.at("precision").string();
  info.batch_sizes = positives(root, "batch_sizes");
  info.sequence_lengths = positives(root, "sequence_lengths");
  const Json& model = root.at("config");
  Config& config = info.config;
  config.hidden_size = positive(model, "hidden_size");
  config.num_hidden_layers = positive(model, "num_hidden_layers");
  config.num_attention_heads = positive(model, "num_attention_heads");
  config.intermediate_size = positive(model, "intermediate_size");
  config.vocab_size = positive(model, "vocab_size");
  config.max_position_embeddings = positive(model, "max_position_embeddings");
  config.type_vocab_size = positive(model, "type_vocab_size");
  config.layer_norm_eps = static_cast<float>(model.at("layer_norm_eps").number());
  config.gelu_erf = model.at("activation").string() == "gelu_erf";
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

EngineFile::EngineFile(const std::string& path) {
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
    read_header(path);
  } catch (const Error& error) {
    munmap(mapping_, bytes_);  // the destructor of a half-made object does not run
    fail("the engine ", path, " cannot be used: ", error.what());
  }
}

EngineFile::~EngineFile() { munmap(mapping_, bytes_); }

void EngineFile::read_header(const std::string&) {
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
    const size_t width = tensor.dtype == "F32" ? 4 : tensor.dtype == "F16" ? 2 : tensor.dtype == "I8" || tensor.dtype == "U8" ? 1 : 0;
    if (width != 0 && tensor.bytes != count * width) fail("tensor ", name, " has ", tensor.bytes, " bytes for ", count, " values of ", tensor.dtype);
    tensors_[name] = std::move(tensor);
  }
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
