// SPDX-License-Identifier: Apache-2.0
// The Runner over a TensorRT plan, for TensorRT 10 and 11. Buffers are allocated once, for the largest profile; every tensor's
// address is bound before every enqueue. A captured graph belongs to its execution context, so each graph has one of its own,
// and all contexts share one piece of activation memory, as they run on one stream.
#include "trt_runner.h"

#include <fstream>

#include "common.h"

namespace bert {

bool is_plan(const std::string& path) {
  char magic[4] = {};
  std::ifstream file(path, std::ios::binary);
  return file.read(magic, 4) && (std::string(magic, 4) == "ptrt" || std::string(magic, 4) == "ftrt");
}

}  // namespace bert

#ifndef BERT_WITH_TENSORRT

namespace bert {

int tensorrt_version() { return 0; }

std::unique_ptr<Runner> load_plan(const std::string& path, const RunnerOptions&) {
  fail(path, " is a TensorRT plan and infer_c was built without TensorRT; build it again with -DTRT_INC_DIR=... -DTRT_LIB_DIR=..., or use inference.py");
}

}  // namespace bert

#else

#include <NvInfer.h>
#include <NvInferPlugin.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <list>
#include <map>
#include <mutex>
#include <sstream>

#include "json.h"

namespace bert {

namespace {

namespace trt = nvinfer1;

constexpr size_t kMaxGraphs = 8;  // each holds an execution context

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

int64_t volume(const trt::Dims& dims) {
  int64_t product = 1;
  for (int i = 0; i < dims.nbDims; ++i) product *= dims.d[i];
  return product;
}

std::string version_text(int version) { return text(version / 10000, ".", version / 100 % 100, ".", version % 100); }

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) fail("the engine ", path, " cannot be opened");
  std::vector<char> bytes(static_cast<size_t>(file.tellg()));
  file.seekg(0);
  if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) fail("the engine ", path, " cannot be read");
  return bytes;
}

class PlanRunner final : public Runner {
 public:
  PlanRunner(const std::string& path, const RunnerOptions& options) : path_(path), options_(options) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) fail("no CUDA device can be used here");
    CUDA_CHECK(cudaGetDevice(&device_));
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, device_));
    const bool known = read_metadata();
    initLibNvInferPlugins(&log_, "");
    runtime_.reset(trt::createInferRuntime(log_));
    if (!runtime_) fail("TensorRT gives no runtime", log_.last());
    const std::vector<char> plan = read_file(path);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) fail("TensorRT ", version_text(tensorrt_version()), " cannot load ", path, log_.last(), "; build it again on this machine");
    plan_bytes_ = plan.size();
    read_tensors();
    if (!known) describe_bare();
    max_batch_ = options.max_batch > 0 ? options.max_batch : info_.max_batch();
    max_length_ = options.max_length > 0 ? options.max_length : info_.max_length();
    if (max_batch_ > info_.max_batch() || max_length_ > info_.max_length()) {
      refuse("batch ", max_batch_, " of length ", max_length_, " was asked for; the engine was built for at most batch ", info_.max_batch(), " of length ",
             info_.max_length());
    }
    allocate();
  }

  ~PlanRunner() override {
    if (stream_) cudaStreamSynchronize(stream_);
    for (Slot& slot : slots_) slot.release();
    if (begin_) cudaEventDestroy(begin_);
    if (end_) cudaEventDestroy(end_);
    slots_.clear();
    if (stream_) cudaStreamDestroy(stream_);
  }

  const EngineInfo& info() const override { return info_; }
  int max_batch() const override { return max_batch_; }
  int max_length() const override { return max_length_; }

  void prepare(int size, int length) override {
    std::vector<int> ids(static_cast<size_t>(size) * length), bounds;
    for (int i = 0; i <= size; ++i) bounds.push_back(i * length);
    stage({ids.data(), ids.data(), bounds.data(), size});
  }

  void run(const HostBatch& batch, float* logits) override {
    const int longest = check_batch(batch, info_.config, max_batch_, max_length_);
    std::lock_guard lock(mutex_);
    CUDA_CHECK(cudaSetDevice(device_));
    const Shape shape = shape_of(batch, longest);
    staged_on_device_ = false;
    upload(batch, shape);
    // Packed shapes hardly ever come twice: a graph for each would cost more than it saves.
    enqueue(ready(shape, options_.graph && !packed_));
    CUDA_CHECK(cudaMemcpyAsync(results_.data(), logits_.data(), sizeof(float) * 2 * places(shape), cudaMemcpyDeviceToHost, stream_));
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    unpad(batch, shape, logits);
  }

  void stage(const HostBatch& batch) override {
    const int longest = check_batch(batch, info_.config, max_batch_, max_length_);
    std::lock_guard lock(mutex_);
    CUDA_CHECK(cudaSetDevice(device_));
    staged_ = shape_of(batch, longest);
    staged_on_device_ = false;
    staged_ids_.assign(batch.ids, batch.ids + batch.cu_seqlens[batch.size]);
    staged_segments_.assign(batch.segments, batch.segments + batch.cu_seqlens[batch.size]);
    staged_bounds_.assign(batch.cu_seqlens, batch.cu_seqlens + batch.size + 1);
    enqueue(stage_again());
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }

  float time_staged() override {
    std::lock_guard lock(mutex_);
    if (staged_.profile < 0) refuse("stage a batch before timing it");
    Slot& slot = stage_again();
    CUDA_CHECK(cudaEventRecord(begin_, stream_));
    enqueue(slot);
    CUDA_CHECK(cudaEventRecord(end_, stream_));
    CUDA_CHECK(cudaEventSynchronize(end_));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
    return ms;
  }

  Facts facts() const override {
    Facts f;
    f.device = properties_.name;
    f.path = "TensorRT " + version_text(tensorrt_version()) + " plan";
    f.compute_capability = properties_.major * 10 + properties_.minor;
    f.multiprocessors = properties_.multiProcessorCount;
    int khz = 0;
    if (cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, device_) == cudaSuccess) f.clock_mhz = khz / 1000;
    cudaDriverGetVersion(&f.driver);
    cudaRuntimeGetVersion(&f.runtime);
    f.weight_bytes = plan_bytes_;
    f.activation_bytes = scratch_.bytes() + inputs_.bytes() + logits_.bytes();
    return f;
  }

  std::string choices() const override { return "{}"; }

 private:
  struct Slot {
    std::unique_ptr<trt::IExecutionContext> context;
    Shape shape;
    cudaGraphExec_t graph = nullptr;
    void release() {
      if (graph) cudaGraphExecDestroy(graph);
      graph = nullptr;
    }
  };

  // Read `<plan>.json` and hold it against this machine; return whether there was one.
  bool read_metadata() {
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
      const std::string& gpu = root.at("gpu").string();
      const std::string here = text("compute capability ", properties_.major, ".", properties_.minor);
      if (gpu.size() < here.size() || gpu.compare(gpu.size() - here.size(), here.size(), here) != 0) {
        fail("the engine ", path_, " was built for ", gpu, ", here is ", properties_.name, ", ", here, "; build it again on this GPU");
      }
    }
    return true;
  }

  void read_tensors() {
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      const bool input = engine_->getTensorIOMode(name) == trt::TensorIOMode::kINPUT;
      const trt::DataType wanted = input ? trt::DataType::kINT32 : trt::DataType::kFLOAT;
      if (engine_->getTensorDataType(name) != wanted) fail("the tensor ", name, " of ", path_, " is not ", input ? "INT32" : "FP32", "; use inference.py");
      (input ? input_names_ : output_names_).push_back(name);
    }
    const auto has = [&](const char* name) { return std::find(input_names_.begin(), input_names_.end(), name) != input_names_.end(); };
    packed_ = has("cu_seqlens");
    const bool padded = has("input_mask") && input_names_.size() == 3;
    if (!has("input_ids") || !has("segment_ids") || !(packed_ || padded) || output_names_.size() != 1) {
      fail(path_, " is no BERT question-answering engine of builder.py; its inputs are not input_ids, segment_ids and input_mask or cu_seqlens");
    }
    if (output_names_[0] == "cls_squad_logits") fail(path_, " takes inputs of shape [sequence, batch], as TensorRT 7.2 made them; build it again");
    for (int p = 0; p < engine_->getNbOptimizationProfiles(); ++p) {
      std::map<std::string, Bounds> profile;
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
  void describe_bare() {
    info_.layout = packed_ ? "packed" : "padded";
    info_.precision = "unknown";
    info_.config.vocab_size = info_.config.max_position_embeddings = std::numeric_limits<int>::max();
    info_.config.type_vocab_size = 2;
    info_.config.hidden_size = info_.config.num_attention_heads = info_.config.num_hidden_layers = info_.config.intermediate_size = 1;
    for (const auto& profile : profiles_) {
      info_.batch_sizes.push_back(batch_limit(profile));
      info_.sequence_lengths.push_back(length_limit(profile));
    }
  }

  int batch_limit(const std::map<std::string, Bounds>& profile) const {
    return packed_ ? static_cast<int>(profile.at("cu_seqlens").most.d[0]) - 1 : static_cast<int>(profile.at("input_ids").most.d[0]);
  }
  int length_limit(const std::map<std::string, Bounds>& profile) const {
    if (!packed_) return static_cast<int>(profile.at("input_ids").most.d[1]);
    const auto found = profile.find("max_seqlen");
    return static_cast<int>(found != profile.end() ? found->second.most.d[0] : profile.at("input_ids").most.d[0]);
  }

  void allocate() {
    int64_t tokens = 0, rows = 0;
    for (const auto& profile : profiles_) {
      tokens = std::max(tokens, volume(profile.at("input_ids").most));
      rows = std::max<int64_t>(rows, std::max(batch_limit(profile) + 1, length_limit(profile)));
    }
    stride_ = static_cast<size_t>(std::max(tokens, rows) + 63) / 64 * 64;  // 256-byte steps keep every input aligned
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    inputs_ = Buffer<int>(stride_ * 4, true);
    staging_ = PinnedBuffer<int>(stride_ * 4);
    logits_ = Buffer<float>(2 * static_cast<size_t>(tokens), true);
    results_ = PinnedBuffer<float>(2 * static_cast<size_t>(tokens));
    scratch_ = Buffer<char>(static_cast<size_t>(engine_->getDeviceMemorySizeV2()));
    CUDA_CHECK(cudaEventCreate(&begin_));
    CUDA_CHECK(cudaEventCreate(&end_));
    CUDA_CHECK(cudaDeviceSynchronize());
  }

  // The profile that computes least for a batch.
  Shape shape_of(const HostBatch& batch, int longest) const {
    const int tokens = batch.cu_seqlens[batch.size];
    Shape best;
    int64_t cost = 0;
    for (size_t p = 0; p < profiles_.size(); ++p) {
      const auto& profile = profiles_[p];
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

  size_t places(const Shape& shape) const { return packed_ ? shape.tokens : static_cast<size_t>(shape.size) * shape.seqlen; }

  trt::Dims dims_of(const std::string& name, const Shape& shape) const {
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

  int place_of(const std::string& name) const { return name == "input_ids" ? 0 : name == "segment_ids" ? 1 : name == "max_seqlen" ? 3 : 2; }

  // The staged batch on the device, where a run has not displaced it, and its context.
  Slot& stage_again() {
    if (!staged_on_device_) {
      upload({staged_ids_.data(), staged_segments_.data(), staged_bounds_.data(), static_cast<int>(staged_bounds_.size()) - 1}, staged_);
      CUDA_CHECK(cudaStreamSynchronize(stream_));
      staged_on_device_ = true;
    }
    return ready(staged_, options_.graph);
  }

  // A context set up for a shape, with its graph when one is wanted. The inputs must be on the device: a capture runs once.
  Slot& ready(const Shape& shape, bool graph) {
    for (auto slot = slots_.begin(); slot != slots_.end(); ++slot) {
      if (slot->shape == shape && (slot->graph != nullptr) == graph) {
        slots_.splice(slots_.begin(), slots_, slot);  // most recently used first
        return slots_.front();
      }
    }
    auto reuse = std::find_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.graph == nullptr; });
    if (graph || reuse == slots_.end()) {
      if (slots_.size() > kMaxGraphs) drop_oldest_graph();
      slots_.emplace_front();
      slots_.front().context.reset(engine_->createExecutionContext(trt::ExecutionContextAllocationStrategy::kUSER_MANAGED));
      if (!slots_.front().context) {
        slots_.pop_front();
        fail("TensorRT cannot make an execution context", log_.last());
      }
      slots_.front().context->setDeviceMemoryV2(scratch_.data(), static_cast<int64_t>(scratch_.bytes()));
    } else {
      slots_.splice(slots_.begin(), slots_, reuse);
    }
    Slot& slot = slots_.front();
    try {
      configure(slot, shape);
      if (graph) capture(slot);
    } catch (...) {
      slots_.pop_front();
      throw;
    }
    return slot;
  }

  void drop_oldest_graph() {
    for (auto slot = std::prev(slots_.end());; --slot) {
      if (slot->graph != nullptr) {
        slot->release();
        slots_.erase(slot);
        return;
      }
      if (slot == slots_.begin()) return;
    }
  }

  // Profile, then shapes, then addresses: in another order TensorRT forgets what was set.
  void configure(Slot& slot, const Shape& shape) {
    trt::IExecutionContext& context = *slot.context;
    if (slot.shape.profile != shape.profile) {
      if (!context.setOptimizationProfileAsync(shape.profile, stream_)) fail("TensorRT refused profile ", shape.profile, log_.last());
      CUDA_CHECK(cudaStreamSynchronize(stream_));
    }
    for (const std::string& name : input_names_) {
      if (!context.setInputShape(name.c_str(), dims_of(name, shape))) fail("TensorRT refused the shape of ", name, log_.last());
      if (!context.setTensorAddress(name.c_str(), inputs_.data() + stride_ * place_of(name))) fail("TensorRT refused the address of ", name, log_.last());
    }
    if (!context.setTensorAddress(output_names_[0].c_str(), logits_.data())) fail("TensorRT refused the address of the logits", log_.last());
    const char* missing = nullptr;
    if (context.inferShapes(1, &missing) != 0) fail("TensorRT lacks the shape of ", missing ? missing : "a tensor", log_.last());
    slot.shape = shape;
  }

  void capture(Slot& slot) {
    if (!slot.context->enqueueV3(stream_)) fail("TensorRT could not run the engine", log_.last());  // once outside: lazy set-up cannot be captured
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    const bool enqueued = slot.context->enqueueV3(stream_);
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    if (!enqueued || ended != cudaSuccess) {
      if (graph) cudaGraphDestroy(graph);
      fail("this engine cannot be captured into a CUDA graph", log_.last(), "; run it without --enable-graph");
    }
    const cudaError_t status = cudaGraphInstantiate(&slot.graph, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_CHECK(status);
  }

  void enqueue(Slot& slot) {
    if (slot.graph) {
      CUDA_CHECK(cudaGraphLaunch(slot.graph, stream_));
    } else if (!slot.context->enqueueV3(stream_)) {
      fail("TensorRT could not run the engine", log_.last());
    }
  }

  void upload(const HostBatch& batch, const Shape& shape) {
    int* ids = staging_.data();
    int *segments = ids + stride_, *third = segments + stride_;
    const size_t count = places(shape), tokens = static_cast<size_t>(batch.cu_seqlens[batch.size]);
    size_t third_count = count;
    if (packed_) {
      std::memcpy(ids, batch.ids, sizeof(int) * tokens);
      std::memcpy(segments, batch.segments, sizeof(int) * tokens);
      third_count = static_cast<size_t>(batch.size) + 1;
      std::memcpy(third, batch.cu_seqlens, sizeof(int) * third_count);
    } else {
      for (int* array : {ids, segments, third}) std::memset(array, 0, sizeof(int) * count);
      for (int i = 0; i < shape.size; ++i) {
        const size_t row = static_cast<size_t>(i) * shape.seqlen;
        third[row] = 1;  // a row of a static engine that no sequence fills has one token: an empty one has no softmax
        if (i >= batch.size) continue;
        const int first = batch.cu_seqlens[i], length = batch.cu_seqlens[i + 1] - first;
        std::memcpy(ids + row, batch.ids + first, sizeof(int) * length);
        std::memcpy(segments + row, batch.segments + first, sizeof(int) * length);
        std::fill_n(third + row, length, 1);
      }
    }
    const size_t counts[] = {count, count, third_count};
    for (int i = 0; i < 3; ++i) {
      CUDA_CHECK(cudaMemcpyAsync(inputs_.data() + stride_ * i, ids + stride_ * i, sizeof(int) * counts[i], cudaMemcpyHostToDevice, stream_));
    }
  }

  // Packed engines answer [2, T, 1, 1], padded ones [B, S, 2, 1, 1].
  void unpad(const HostBatch& batch, const Shape& shape, float* logits) const {
    const float* from = results_.data();
    const int tokens = batch.cu_seqlens[batch.size];
    if (packed_) {
      for (int i = 0; i < tokens; ++i) {
        logits[2 * i] = from[i];
        logits[2 * i + 1] = from[tokens + i];
      }
      return;
    }
    for (int i = 0; i < batch.size; ++i) {
      const int first = batch.cu_seqlens[i], length = batch.cu_seqlens[i + 1] - first;
      std::memcpy(logits + 2 * first, from + 2 * static_cast<size_t>(i) * shape.seqlen, sizeof(float) * 2 * length);
    }
  }

  // Declared so that what others depend on is destroyed last.
  std::string path_;
  RunnerOptions options_;
  Log log_;
  EngineInfo info_;
  int device_ = 0, max_batch_ = 0, max_length_ = 0;
  cudaDeviceProp properties_{};
  std::unique_ptr<trt::IRuntime> runtime_;
  std::unique_ptr<trt::ICudaEngine> engine_;
  std::vector<std::string> input_names_, output_names_;
  std::vector<std::map<std::string, Bounds>> profiles_;
  bool packed_ = false;
  size_t plan_bytes_ = 0, stride_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  Buffer<int> inputs_;  // ids, segments, mask or cu_seqlens, max_seqlen
  PinnedBuffer<int> staging_;
  Buffer<float> logits_;
  PinnedBuffer<float> results_;
  Buffer<char> scratch_;
  std::list<Slot> slots_;
  Shape staged_;
  bool staged_on_device_ = false;
  std::vector<int> staged_ids_, staged_segments_, staged_bounds_;
  mutable std::mutex mutex_;
};

}  // namespace

int tensorrt_version() { return getInferLibVersion(); }

std::unique_ptr<Runner> load_plan(const std::string& path, const RunnerOptions& options) { return std::make_unique<PlanRunner>(path, options); }

}  // namespace bert

#endif
