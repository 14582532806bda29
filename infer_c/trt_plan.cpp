// SPDX-License-Identifier: Apache-2.0
// Reads what a plan says of itself, beside it and in its tensors and profiles. Empty without TensorRT.
#ifdef BERT_WITH_TENSORRT

#include "trt_plan.h"

#include <NvInferPlugin.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "json.h"
#include "trt_runner.h"

namespace bert {

namespace {

int64_t volume(const trt::Dims& dims) {
  int64_t product = 1;
  for (int i = 0; i < dims.nbDims; ++i) product *= dims.d[i];
  return product;
}

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) fail("the engine ", path, " cannot be opened");
  std::vector<char> bytes(static_cast<size_t>(file.tellg()));
  file.seekg(0);
  if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) fail("the engine ", path, " cannot be read");
  return bytes;
}

}  // namespace

std::string version_text(int version) { return text(version / 10000, ".", version / 100 % 100, ".", version % 100); }

Plan::Plan(const std::string& path, const Gpu& gpu) : path_(path) {
  const bool known = read_metadata(gpu);
  initLibNvInferPlugins(&log_, "");
  runtime_.reset(trt::createInferRuntime(log_));
  if (!runtime_) fail("TensorRT gives no runtime", log_.last());
  const std::vector<char> plan = read_file(path);
  engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
  if (!engine_) fail("TensorRT ", version_text(tensorrt_version()), " cannot load ", path, log_.last(), "; build it again on this machine");
  bytes_ = plan.size();
  read_tensors();
  read_profiles();
  if (!known) describe_bare();
}

// Read `<plan>.json` and hold it against this machine; return whether there was one.
bool Plan::read_metadata(const Gpu& gpu) {
  std::ifstream file(path_ + ".json");
  if (!file) return false;
  std::stringstream content;
  content << file.rdbuf();
  info_ = parse_info(content.str(), "tensorrt");
  const Json root = Json::parse(content.str());
  const Json& versions = root.at("versions");
  if (versions.has("tensorrt")) {
    const std::string& built = versions.at("tensorrt").string();
    const std::string here = version_text(tensorrt_version());
    if (built.compare(0, here.size() + 1, here + ".") != 0 && built != here) {
      fail("the engine ", path_, " was built with TensorRT ", built, ", here is ", here, "; build it again");
    }
  }
  if (root.at("gpu").kind() == Json::Kind::string) {
    const std::string& built = root.at("gpu").string();
    const std::string here = text("compute capability ", gpu.properties().major, ".", gpu.properties().minor);
    if (built.size() < here.size() || built.compare(built.size() - here.size(), here.size(), here) != 0) {
      fail("the engine ", path_, " was built for ", built, ", here is ", gpu.properties().name, ", ", here, "; build it again on this GPU");
    }
  }
  return true;
}

void Plan::read_tensors() {
  std::vector<std::string> output_names;
  for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
    const char* name = engine_->getIOTensorName(i);
    const bool input = engine_->getTensorIOMode(name) == trt::TensorIOMode::kINPUT;
    const trt::DataType wanted = input ? trt::DataType::kINT32 : trt::DataType::kFLOAT;
    if (engine_->getTensorDataType(name) != wanted) fail("the tensor ", name, " of ", path_, " is not ", input ? "INT32" : "FP32", "; use inference.py");
    (input ? input_names_ : output_names).push_back(name);
  }
  const auto has = [&](const char* name) { return std::find(input_names_.begin(), input_names_.end(), name) != input_names_.end(); };
  packed_ = has("cu_seqlens");
  const bool padded = has("input_mask") && input_names_.size() == 3;
  if (!has("input_ids") || !has("segment_ids") || !(packed_ || padded) || output_names.size() != 1) {
    fail(path_, " is no BERT question-answering engine of builder.py; its inputs are not input_ids, segment_ids and input_mask or cu_seqlens");
  }
  output_name_ = output_names[0];
  if (output_name_ == "cls_squad_logits") fail(path_, " takes inputs of shape [sequence, batch], as TensorRT 7.2 made them; build it again");
}

void Plan::read_profiles() {
  for (int p = 0; p < engine_->getNbOptimizationProfiles(); ++p) {
    Profile profile;
    for (const std::string& name : input_names_) {
      const trt::Dims fixed = engine_->getTensorShape(name.c_str());
      const bool dynamic = std::count(fixed.d, fixed.d + fixed.nbDims, -1) > 0;  // a static input has one shape, whatever profiles say of it
      profile[name] = {dynamic ? engine_->getProfileShape(name.c_str(), p, trt::OptProfileSelector::kMIN) : fixed,
                       dynamic ? engine_->getProfileShape(name.c_str(), p, trt::OptProfileSelector::kMAX) : fixed};
    }
    profiles_.push_back(profile);
  }
}

// What a plan without metadata says of itself: sizes; of its model nothing is known.
void Plan::describe_bare() {
  info_.layout = packed_ ? "packed" : "padded";
  info_.precision = "unknown";
  info_.config.vocab_size = info_.config.max_position_embeddings = std::numeric_limits<int>::max();
  info_.config.type_vocab_size = 2;
  info_.config.hidden_size = info_.config.num_attention_heads = info_.config.num_hidden_layers = info_.config.intermediate_size = 1;
  for (const Profile& profile : profiles_) {
    info_.batch_sizes.push_back(batch_limit(profile));
    info_.sequence_lengths.push_back(length_limit(profile));
  }
}

int Plan::batch_limit(const Profile& profile) const {
  return packed_ ? static_cast<int>(profile.at("cu_seqlens").most.d[0]) - 1 : static_cast<int>(profile.at("input_ids").most.d[0]);
}

int Plan::length_limit(const Profile& profile) const {
  if (!packed_) return static_cast<int>(profile.at("input_ids").most.d[1]);
  const auto found = profile.find("max_seqlen");
  return static_cast<int>(found != profile.end() ? found->second.most.d[0] : profile.at("input_ids").most.d[0]);
}

int64_t Plan::most_tokens() const {
  int64_t most = 0;
  for (const Profile& profile : profiles_) most = std::max(most, volume(profile.at("input_ids").most));
  return most;
}

int64_t Plan::most_rows() const {
  int most = 0;
  for (const Profile& profile : profiles_) most = std::max({most, batch_limit(profile) + 1, length_limit(profile)});
  return most;
}

Shape Plan::shape_of(const HostBatch& batch, int longest) const {
  const int tokens = batch.cu_seqlens[batch.size];
  Shape best;
  int64_t cost = 0;
  for (size_t p = 0; p < profiles_.size(); ++p) {
    const Profile& profile = profiles_[p];
    if (batch.size > batch_limit(profile) || longest > length_limit(profile)) continue;
    if (packed_ && tokens > profile.at("input_ids").most.d[0]) continue;
    Shape shape{static_cast<int>(p), batch.size, longest, tokens};
    if (!packed_) {
      const trt::Dims& least = profile.at("input_ids").least;
      shape = {static_cast<int>(p), std::max(batch.size, static_cast<int>(least.d[0])), std::max(longest, static_cast<int>(least.d[1])), 0};
    }
    const int64_t candidate = packed_ ? profile.at("input_ids").most.d[0] : static_cast<int64_t>(shape.size) * shape.seqlen;
    if (best.profile < 0 || candidate < cost) {
      best = shape;
      cost = candidate;
    }
  }
  if (best.profile < 0) refuse("no profile of the engine takes a batch of ", batch.size, " with length ", longest, "; build it with -b and -s for it");
  return best;
}

trt::Dims Plan::dims_of(const std::string& name, const Shape& shape) const {
  trt::Dims dims{};
  if (!packed_) {
    dims.nbDims = 2;
    dims.d[0] = shape.size;
    dims.d[1] = shape.seqlen;
    return dims;
  }
  dims.nbDims = 1;
  dims.d[0] = name == "cu_seqlens" ? shape.size + 1 : name == "max_seqlen" ? shape.seqlen : shape.tokens;  // max_seqlen speaks through its length
  return dims;
}

}  // namespace bert

#endif
