// SPDX-License-Identifier: Apache-2.0
// A TensorRT plan, loaded: its metadata held against this machine, its tensors, and the optimization profile that serves a
// batch. Included only where TensorRT is; buffers and execution are trt_runner.cpp's.
#pragma once

#include <NvInfer.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bert_infer.h"
#include "gpu.h"

namespace bert {

namespace trt = nvinfer1;

class Log final : public trt::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    std::lock_guard lock(mutex_);
    last_ = message;
  }
  std::string last() const {
    std::lock_guard lock(mutex_);
    return last_.empty() ? "" : " (" + last_ + ")";
  }

 private:
  mutable std::mutex mutex_;
  std::string last_;
};

// What a batch needs of the engine. seqlen: the rectangle's width (padded) or the longest sequence (packed).
struct Shape {
  int profile = -1, size = 0, seqlen = 0, tokens = 0;
  bool operator==(const Shape& o) const { return profile == o.profile && size == o.size && seqlen == o.seqlen && tokens == o.tokens; }
};

struct Bounds {
  trt::Dims least, most;
};

std::string version_text(int version);

class Plan {
 public:
  // Throw Error where the plan does not fit the GPU or TensorRT's version, or is no engine of ours.
  Plan(const std::string& path, const Gpu& gpu);

  const EngineInfo& info() const { return info_; }
  trt::ICudaEngine& engine() const { return *engine_; }
  bool packed() const { return packed_; }
  const std::vector<std::string>& inputs() const { return input_names_; }
  const std::string& output() const { return output_name_; }
  size_t bytes() const { return bytes_; }
  std::string last_error() const { return log_.last(); }  // in brackets; empty where TensorRT said nothing

  // The profile that computes least for a batch; throw ArgumentError where none takes it.
  Shape shape_of(const HostBatch& batch, int longest) const;
  // Tokens of a shape, padding included.
  size_t places(const Shape& shape) const { return packed_ ? shape.tokens : static_cast<size_t>(shape.size) * shape.seqlen; }
  trt::Dims dims_of(const std::string& name, const Shape& shape) const;
  // Over all profiles: the most tokens, and the most elements of any other input.
  int64_t most_tokens() const;
  int64_t most_rows() const;

 private:
  using Profile = std::map<std::string, Bounds>;  // by the name of the input

  bool read_metadata(const Gpu& gpu);
  void read_tensors();
  void read_profiles();
  void describe_bare();
  int batch_limit(const Profile& profile) const;
  int length_limit(const Profile& profile) const;

  // Declared so that what others depend on is destroyed last.
  std::string path_;
  Log log_;
  EngineInfo info_;
  std::unique_ptr<trt::IRuntime> runtime_;
  std::unique_ptr<trt::ICudaEngine> engine_;
  std::vector<std::string> input_names_;
  std::string output_name_;
  std::vector<Profile> profiles_;
  bool packed_ = false;
  size_t bytes_ = 0;
};

}  // namespace bert
