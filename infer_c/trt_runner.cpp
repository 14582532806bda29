// SPDX-License-Identifier: Apache-2.0
// The Runner over a TensorRT plan (trt_plan.h), for TensorRT 10 and 11. Buffers are allocated once, for the largest profile;
// every tensor's address is bound before every enqueue. A captured graph belongs to its execution context, so each graph has
// one of its own, and all contexts share one piece of activation memory, as they run on one stream.
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

#include <algorithm>
#include <cstring>
#include <list>
#include <mutex>

#include "trt_plan.h"

namespace bert {

namespace {

constexpr size_t kMaxGraphs = 8;  // each holds an execution context

class PlanRunner final : public Runner {
 public:
  PlanRunner(const std::string& path, const RunnerOptions& options) : options_(options), plan_(path, gpu_), limits_(options, plan_.info()) {
    const size_t tokens = static_cast<size_t>(plan_.most_tokens());
    stride_ = (std::max(tokens, static_cast<size_t>(plan_.most_rows())) + 63) / 64 * 64;  // 256-byte steps keep every input aligned
    inputs_ = Buffer<int>(stride_ * 4, true);
    staging_ = PinnedBuffer<int>(stride_ * 4);
    logits_ = Buffer<float>(2 * tokens, true);
    results_ = PinnedBuffer<float>(2 * tokens);
    scratch_ = Buffer<char>(static_cast<size_t>(plan_.engine().getDeviceMemorySizeV2()));
    wait_for_load();
  }

  ~PlanRunner() override { cudaStreamSynchronize(stream_); }

  const EngineInfo& info() const override { return plan_.info(); }
  int max_batch() const override { return limits_.batch; }
  int max_length() const override { return limits_.length; }

  void prepare(int size, int length) override {
    check_prepare(*this, size, length);
    std::vector<int> ids(static_cast<size_t>(size) * length), bounds;
    for (int i = 0; i <= size; ++i) bounds.push_back(i * length);
    std::vector<float> logits(2 * ids.size());
    run({ids.data(), ids.data(), bounds.data(), size}, logits.data());  // what is staged stays as it is
  }

  void run(const HostBatch& batch, float* logits) override {
    const int longest = check_batch(batch, info().config, limits_.batch, limits_.length);
    std::lock_guard lock(mutex_);
    gpu_.select();
    const Shape shape = plan_.shape_of(batch, longest);
    staged_on_device_ = false;
    upload(batch, shape);
    // Packed shapes hardly ever come twice: a graph for each would cost more than it saves.
    enqueue(ready(shape, options_.graph && !plan_.packed()));
    CUDA_CHECK(cudaMemcpyAsync(results_.data(), logits_.data(), sizeof(float) * 2 * plan_.places(shape), cudaMemcpyDeviceToHost, stream_));
    stream_.wait();
    unpad(batch, shape, logits);
  }

  void stage(const HostBatch& batch) override {
    const int longest = check_batch(batch, info().config, limits_.batch, limits_.length);
    std::lock_guard lock(mutex_);
    gpu_.select();
    staged_ = plan_.shape_of(batch, longest);
    staged_on_device_ = false;
    staged_ids_.assign(batch.ids, batch.ids + batch.cu_seqlens[batch.size]);
    staged_segments_.assign(batch.segments, batch.segments + batch.cu_seqlens[batch.size]);
    staged_bounds_.assign(batch.cu_seqlens, batch.cu_seqlens + batch.size + 1);
    enqueue(stage_again());
    stream_.wait();
  }

  float time_staged() override {
    std::lock_guard lock(mutex_);
    if (staged_.profile < 0) refuse("stage a batch before timing it");
    gpu_.select();
    Slot& slot = stage_again();
    return stream_.milliseconds([&] { enqueue(slot); });
  }

  Facts facts() const override {
    Facts f = gpu_.facts();
    f.path = "TensorRT " + version_text(tensorrt_version()) + " plan";
    f.weight_bytes = plan_.bytes();
    f.activation_bytes = scratch_.bytes() + inputs_.bytes() + logits_.bytes();
    return f;
  }

  std::string choices() const override { return "{}"; }

 private:
  struct Slot {
    std::unique_ptr<trt::IExecutionContext> context;
    Shape shape;
    cudaGraphExec_t graph = nullptr;
    Slot() = default;
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;
    ~Slot() {
      if (graph) cudaGraphExecDestroy(graph);  // before its context
    }
  };

  int place_of(const std::string& name) const { return name == "input_ids" ? 0 : name == "segment_ids" ? 1 : name == "max_seqlen" ? 3 : 2; }

  // The staged batch on the device, where a run has not displaced it, and its context.
  Slot& stage_again() {
    if (!staged_on_device_) {
      upload({staged_ids_.data(), staged_segments_.data(), staged_bounds_.data(), static_cast<int>(staged_bounds_.size()) - 1}, staged_);
      stream_.wait();
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
      slots_.front().context.reset(plan_.engine().createExecutionContext(trt::ExecutionContextAllocationStrategy::kUSER_MANAGED));
      if (!slots_.front().context) {
        slots_.pop_front();
        fail("TensorRT cannot make an execution context", plan_.last_error());
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
      if (!context.setOptimizationProfileAsync(shape.profile, stream_)) fail("TensorRT refused profile ", shape.profile, plan_.last_error());
      stream_.wait();
    }
    for (const std::string& name : plan_.inputs()) {
      if (!context.setInputShape(name.c_str(), plan_.dims_of(name, shape))) fail("TensorRT refused the shape of ", name, plan_.last_error());
      if (!context.setTensorAddress(name.c_str(), inputs_.data() + stride_ * place_of(name))) fail("TensorRT refused the address of ", name, plan_.last_error());
    }
    if (!context.setTensorAddress(plan_.output().c_str(), logits_.data())) fail("TensorRT refused the address of the logits", plan_.last_error());
    const char* missing = nullptr;
    if (context.inferShapes(1, &missing) != 0) fail("TensorRT lacks the shape of ", missing ? missing : "a tensor", plan_.last_error());
    slot.shape = shape;
  }

  void capture(Slot& slot) {
    if (!slot.context->enqueueV3(stream_)) fail("TensorRT could not run the engine", plan_.last_error());  // once outside: lazy set-up cannot be captured
    stream_.wait();
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    const bool enqueued = slot.context->enqueueV3(stream_);
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    if (!enqueued || ended != cudaSuccess) {
      if (graph) cudaGraphDestroy(graph);
      fail("this engine cannot be captured into a CUDA graph", plan_.last_error(), "; run it without --enable-graph");
    }
    const cudaError_t status = cudaGraphInstantiate(&slot.graph, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_CHECK(status);
  }

  void enqueue(Slot& slot) {
    if (slot.graph) {
      CUDA_CHECK(cudaGraphLaunch(slot.graph, stream_));
    } else if (!slot.context->enqueueV3(stream_)) {
      fail("TensorRT could not run the engine", plan_.last_error());
    }
  }

  void upload(const HostBatch& batch, const Shape& shape) {
    int* ids = staging_.data();
    int *segments = ids + stride_, *third = segments + stride_;
    const size_t count = plan_.places(shape), tokens = static_cast<size_t>(batch.cu_seqlens[batch.size]);
    size_t third_count = count;
    if (plan_.packed()) {
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
    if (plan_.packed()) {
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
  RunnerOptions options_;
  Gpu gpu_;
  Plan plan_;
  Limits limits_;
  TimedStream stream_;
  size_t stride_ = 0;
  Buffer<int> inputs_;  // ids, segments, mask or cu_seqlens, max_seqlen
  PinnedBuffer<int> staging_;
  Buffer<float> logits_;
  PinnedBuffer<float> results_;
  Buffer<char> scratch_;
  std::list<Slot> slots_;
  Shape staged_;
  bool staged_on_device_ = false;
  std::vector<int> staged_ids_, staged_segments_, staged_bounds_;
  std::mutex mutex_;
};

}  // namespace

int tensorrt_version() { return getInferLibVersion(); }

std::unique_ptr<Runner> load_plan(const std::string& path, const RunnerOptions& options) { return std::make_unique<PlanRunner>(path, options); }

}  // namespace bert

#endif
