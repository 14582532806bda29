// SPDX-License-Identifier: Apache-2.0
// The part of TensorRT's C++ interface that the runner uses, strict: an enqueue without every shape and address, outside the
// profile, or captured before a first run fails. Its engines are told by the plan's text: "ptrt padded|packed P", then for each
// of P profiles least and largest batch and length. A token's start logit is id + 1000 segment + position / 10, its end logit
// the number of tokens its sequence has: wrong rows, masks or offsets show.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace nvinfer1 {

struct Dims {
  int32_t nbDims = 0;
  int64_t d[8] = {};
};
enum class DataType { kFLOAT, kHALF, kINT8, kINT32 };
enum class TensorIOMode { kNONE, kINPUT, kOUTPUT };
enum class OptProfileSelector { kMIN, kOPT, kMAX };
enum class ExecutionContextAllocationStrategy { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };

class ILogger {
 public:
  enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

struct FakeProfile {
  int least_batch, batch, least_length, length;
};

class ICudaEngine;

class IExecutionContext {
 public:
  explicit IExecutionContext(const ICudaEngine& engine) : engine_(engine) {}
  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream);
  bool setInputShape(const char* name, const Dims& dims);
  bool setTensorAddress(const char* name, void* address) { return address != nullptr && (addresses_[name] = address, true); }
  void setDeviceMemoryV2(void* memory, int64_t) { memory_ = memory; }
  int32_t inferShapes(int32_t, const char**) const;
  bool enqueueV3(cudaStream_t stream);

 private:
  bool execute(const std::map<std::string, Dims>& shapes);
  const ICudaEngine& engine_;
  int profile_ = 0;
  bool ran_ = false;
  void* memory_ = nullptr;
  std::map<std::string, Dims> shapes_;
  std::map<std::string, void*> addresses_;
};

class ICudaEngine {
 public:
  bool packed = false;
  std::vector<FakeProfile> profiles;
  std::vector<std::string> names;

  int32_t getNbIOTensors() const { return static_cast<int32_t>(names.size()); }
  const char* getIOTensorName(int32_t i) const { return names[i].c_str(); }
  TensorIOMode getTensorIOMode(const char* name) const { return name == names.back() ? TensorIOMode::kOUTPUT : TensorIOMode::kINPUT; }
  DataType getTensorDataType(const char* name) const { return name == names.back() ? DataType::kFLOAT : DataType::kINT32; }
  int32_t getNbOptimizationProfiles() const { return static_cast<int32_t>(profiles.size()); }
  int64_t getDeviceMemorySizeV2() const { return 64; }
  Dims getTensorShape(const char* name) const {
    const Dims low = getProfileShape(name, 0, OptProfileSelector::kMIN), high = getProfileShape(name, 0, OptProfileSelector::kMAX);
    Dims shape = high;
    for (int i = 0; i < shape.nbDims; ++i) {
      if (profiles.size() > 1 || low.d[i] != high.d[i]) shape.d[i] = -1;
    }
    return shape;
  }
  Dims getProfileShape(const char* name, int32_t index, OptProfileSelector select) const {
    const FakeProfile& p = profiles[index];
    const bool least = select == OptProfileSelector::kMIN;
    const int batch = least ? p.least_batch : p.batch, length = least ? p.least_length : p.length;
    if (!packed) return {2, {batch, length}};
    const std::string n = name;
    return {1, {n == "cu_seqlens" ? batch + 1 : n == "max_seqlen" ? length : least ? 1 : batch * length}};
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) { return new IExecutionContext(*this); }
};

inline bool IExecutionContext::setOptimizationProfileAsync(int32_t profile, cudaStream_t) {
  if (profile < 0 || profile >= engine_.getNbOptimizationProfiles()) return false;
  profile_ = profile;
  shapes_.clear();
  addresses_.clear();
  ran_ = false;
  return true;
}

inline bool IExecutionContext::setInputShape(const char* name, const Dims& dims) {
  const Dims low = engine_.getProfileShape(name, profile_, OptProfileSelector::kMIN), high = engine_.getProfileShape(name, profile_, OptProfileSelector::kMAX);
  if (dims.nbDims != low.nbDims) return false;
  for (int i = 0; i < dims.nbDims; ++i) {
    if (dims.d[i] < low.d[i] || dims.d[i] > high.d[i]) return false;
  }
  shapes_[name] = dims;
  return true;
}

inline int32_t IExecutionContext::inferShapes(int32_t, const char** missing) const {
  for (size_t i = 0; i + 1 < engine_.names.size(); ++i) {
    if (shapes_.count(engine_.names[i]) == 0) return *missing = engine_.names[i].c_str(), 1;
  }
  return 0;
}

inline bool IExecutionContext::enqueueV3(cudaStream_t stream) {
  const char* missing = nullptr;
  if (memory_ == nullptr || inferShapes(1, &missing) != 0) return false;
  for (const std::string& name : engine_.names) {
    if (addresses_.count(name) == 0) return false;
  }
  if (stream->capture == nullptr) return ran_ = true, execute(shapes_);
  if (!ran_) return false;  // lazy set-up cannot be captured
  stream->capture->work.push_back([this, shapes = shapes_] { return execute(shapes); });
  return true;
}

// Of the batch that ran last.
inline int& fake_first_id() {
  static int id = -1;
  return id;
}

inline bool IExecutionContext::execute(const std::map<std::string, Dims>& shapes) {
  for (const auto& [name, dims] : shapes) {
    for (int i = 0; i < dims.nbDims; ++i) {
      if (shapes_.at(name).d[i] != dims.d[i]) return false;  // a graph replayed on a context that has gone on
    }
  }
  const int* ids = static_cast<int*>(addresses_.at("input_ids"));
  const int* segments = static_cast<int*>(addresses_.at("segment_ids"));
  float* out = static_cast<float*>(addresses_.at(engine_.names.back()));
  fake_first_id() = ids[0];
  const auto start = [&](int64_t at, int64_t position) { return ids[at] + 1000.f * segments[at] + position / 10.f; };
  if (engine_.packed) {
    const int* bounds = static_cast<int*>(addresses_.at("cu_seqlens"));
    const int64_t tokens = shapes.at("input_ids").d[0], size = shapes.at("cu_seqlens").d[0] - 1;
    if (bounds[size] != tokens) return false;
    for (int64_t i = 0; i < size; ++i) {
      if (bounds[i + 1] - bounds[i] > shapes.at("max_seqlen").d[0]) return false;
      for (int at = bounds[i]; at < bounds[i + 1]; ++at) {
        out[at] = start(at, at - bounds[i]);
        out[tokens + at] = static_cast<float>(bounds[i + 1] - bounds[i]);
      }
    }
    return true;
  }
  const int* mask = static_cast<int*>(addresses_.at("input_mask"));
  const int64_t size = shapes.at("input_ids").d[0], length = shapes.at("input_ids").d[1];
  for (int64_t i = 0; i < size; ++i) {
    int real = 0;
    while (real < length && mask[i * length + real] == 1) ++real;
    if (real == 0) return false;  // an empty row has no softmax
    for (int64_t j = 0; j < length; ++j) {
      out[2 * (i * length + j)] = start(i * length + j, j);
      out[2 * (i * length + j) + 1] = static_cast<float>(real);
    }
  }
  return true;
}

class IRuntime {
 public:
  explicit IRuntime(ILogger& log) : log_(log) {}
  ICudaEngine* deserializeCudaEngine(const void* data, size_t size) {
    std::istringstream plan(std::string(static_cast<const char*>(data), size));
    std::string magic, layout;
    int count = 0;
    plan >> magic >> layout >> count;
    auto engine = std::make_unique<ICudaEngine>();
    engine->packed = layout == "packed";
    for (FakeProfile p; count > 0 && plan >> p.least_batch >> p.batch >> p.least_length >> p.length; --count) engine->profiles.push_back(p);
    if (magic != "ptrt" || engine->profiles.empty() || count != 0) {
      log_.log(ILogger::Severity::kERROR, "magicTag failed");
      return nullptr;
    }
    engine->names = engine->packed ? std::vector<std::string>{"input_ids", "segment_ids", "cu_seqlens", "max_seqlen", "logits_out"}
                                   : std::vector<std::string>{"input_ids", "segment_ids", "input_mask", "logits_out"};
    return engine.release();
  }

 private:
  ILogger& log_;
};

inline IRuntime* createInferRuntime(ILogger& log) { return new IRuntime(log); }

}  // namespace nvinfer1

inline int getInferLibVersion() { return 101600; }
