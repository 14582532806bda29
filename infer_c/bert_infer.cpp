// SPDX-License-Identifier: Apache-2.0
// The Runner over our own encoders. Everything is allocated once, for the largest batch. The inputs travel in one copy from
// pinned memory to fixed device addresses, so a captured graph serves every mix of lengths in its bucket.
#include "bert_infer.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <random>

#include "common.h"
#include "encoder.h"
#include "gpu.h"
#include "replay.h"
#include "trt_runner.h"

namespace bert {

namespace {

constexpr size_t kMaxGraphs = 128;  // about 1 MB each for 120 kernels; the least recently used goes first

// Batch sizes of buckets: up to an eighth more sequences (of length 0) than asked for.
int round_batch(int size, int limit) {
  int step = 1;
  while (size > 8 * step) step *= 2;
  return std::min(limit, round_up(size, step));
}

int round_rows(int rows, int limit) {
  int step = 128;
  while (rows > 16 * step) step *= 2;
  return std::min(limit, round_up(rows, step));
}

class CudaRunner final : public Runner {
 public:
  CudaRunner(const std::string& path, const RunnerOptions& options) : file_(path), options_(options), limits_(limits_of(options, file_.info())) {
    const EngineInfo& info = file_.info();
    const cudaDeviceProp& gpu = gpu_.properties();
    const int capability = gpu_.capability();
    if (capability < 80) fail(gpu.name, " has compute capability ", gpu.major, ".", gpu.minor, "; the cuda backend needs 8.0");
    const bool eight_bit = info.precision == "int8" || info.precision == "fp8";
    if (!eight_bit && info.precision != "fp16" && info.precision != "fp32") fail("the cuda backend has no precision ", info.precision, "; build with --fp16");
    if (eight_bit && capability != 90) {
      fail("this is an ", info.precision, " engine, whose kernels need compute capability 9.0 (Hopper); ", gpu.name, " has ", gpu.major, ".",
           gpu.minor, ". Build with --fp16 for it");
    }
    const bool hopper = capability == 90 && info.precision == "fp16" && !options.plain;
    encoder_ = eight_bit ? encoder_8bit_sm90(file_, limits_) : hopper ? encoder_sm90(file_, limits_) : encoder_plain(file_, limits_);
    if (!options.choices.empty()) encoder_->set_choices(options.choices);
    header_ = round_up(limits_.max_batch + 2, 4);
    const size_t ints = static_cast<size_t>(header_) + 3ull * limits_.max_rows();
    inputs_ = Buffer<int>(ints, true);
    staging_ = PinnedBuffer<int>(ints);
    logits_ = Buffer<float>(2ull * limits_.max_rows(), true);
    results_ = PinnedBuffer<float>(2ull * limits_.max_rows());
    wait_for_load();
  }

  const EngineInfo& info() const override { return file_.info(); }
  int max_batch() const override { return limits_.max_batch; }
  int max_length() const override { return limits_.max_length; }

  void prepare(int size, int length) override {
    check_prepare(*this, size, length);
    std::lock_guard lock(mutex_);
    ready(bucket_of(size, length, size * length));
  }

  bool searched(int size, int longest, int tokens) const override {
    if (size > limits_.max_batch || longest > limits_.max_length) return true;  // run() refuses it
    std::lock_guard lock(mutex_);
    return encoder_->tuned(bucket_of(size, longest, tokens));
  }

  void run(const HostBatch& batch, float* logits) override {
    const int longest = check_batch(batch, file_.info().config, limits_.max_batch, limits_.max_length);
    const int tokens = batch.cu_seqlens[batch.size];
    std::lock_guard lock(mutex_);
    gpu_.select();
    const Bucket bucket = bucket_of(batch.size, longest, tokens);
    ready(bucket);
    upload(batch);
    enqueue(bucket);
    CUDA_CHECK(cudaMemcpyAsync(results_.data(), logits_.data(), sizeof(float) * 2 * tokens, cudaMemcpyDeviceToHost, stream_));
    stream_.wait();
    std::memcpy(logits, results_.data(), sizeof(float) * 2 * tokens);
  }

  void stage(const HostBatch& batch) override {
    const int longest = check_batch(batch, file_.info().config, limits_.max_batch, limits_.max_length);
    const int tokens = batch.cu_seqlens[batch.size];
    std::lock_guard lock(mutex_);
    gpu_.select();
    const Bucket bucket = bucket_of(batch.size, longest, tokens);
    ready(bucket);
    upload(batch);
    stream_.wait();
    staged_ = bucket;
    staged_inputs_.assign(staging_.data(), staging_.data() + header_ + 3ull * tokens);
    staged_on_device_ = true;
  }

  float time_staged() override {
    std::lock_guard lock(mutex_);
    if (staged_.rows == 0) refuse("stage a batch before timing it");
    gpu_.select();
    if (!staged_on_device_) {  // other batches have run since
      ready(staged_);
      std::copy(staged_inputs_.begin(), staged_inputs_.end(), staging_.data());
      send(staged_inputs_.size());
      stream_.wait();
      staged_on_device_ = true;
    }
    return stream_.milliseconds([&] { enqueue(staged_); });
  }

  Facts facts() const override {
    Facts f = gpu_.facts();
    f.path = encoder_->name();
    f.weight_bytes = encoder_->weight_bytes();
    f.activation_bytes = encoder_->activation_bytes() + inputs_.bytes() + logits_.bytes();
    return f;
  }

  std::string choices() const override {
    std::lock_guard lock(mutex_);
    return encoder_->choices();
  }

 private:
  struct Graph {
    Replay pass;
    unsigned long long last_use;
  };

  static EncoderLimits limits_of(const RunnerOptions& options, const EngineInfo& info) {
    const Limits limits(options, info);
    return {limits.batch, limits.length};
  }
  Inputs inputs() const { return {inputs_.data(), inputs_.data() + 1, inputs_.data() + header_}; }
  Bucket bucket_of(int size, int longest, int tokens) const {
    return {round_batch(size, limits_.max_batch), std::min(limits_.max_length, round_up(longest, 64)), round_rows(tokens, limits_.max_rows())};
  }

  // One copy to the device: token count, sequence bounds, then (id, segment, place) of each token.
  void upload(const HostBatch& batch) {
    staged_on_device_ = false;
    int* host = staging_.data();
    const int tokens = batch.cu_seqlens[batch.size];
    host[0] = tokens;
    for (int i = 0; i <= limits_.max_batch; ++i) host[1 + i] = batch.cu_seqlens[std::min(i, batch.size)];
    int* triple = host + header_;
    for (int i = 0; i < batch.size; ++i) {
      for (int j = batch.cu_seqlens[i]; j < batch.cu_seqlens[i + 1]; ++j, triple += 3) {
        triple[0] = batch.ids[j];
        triple[1] = batch.segments[j];
        triple[2] = j - batch.cu_seqlens[i];
      }
    }
    send(header_ + 3ull * tokens);
  }

  // What lies in the staging memory, to the device.
  void send(size_t ints) { CUDA_CHECK(cudaMemcpyAsync(inputs_.data(), staging_.data(), sizeof(int) * ints, cudaMemcpyHostToDevice, stream_)); }

  // A batch that fills a bucket, with random ids: what algorithms are timed on.
  void upload_random(const Bucket& bucket) {
    std::minstd_rand random(12345);
    std::vector<int> ids(bucket.rows), segments(bucket.rows), bounds(bucket.batch + 1);
    for (int& id : ids) id = static_cast<int>(random() % file_.info().config.vocab_size);
    for (int i = 0; i <= bucket.batch; ++i) bounds[i] = std::min<long long>(bucket.rows, static_cast<long long>(i) * bucket.max_seqlen);
    bounds[bucket.batch] = std::min(bucket.rows, bounds[bucket.batch]);
    upload({ids.data(), segments.data(), bounds.data(), bucket.batch});
    stream_.wait();
  }

  // Of the buckets that share a choice of algorithms the one with most rows: what is found does not depend on which of them came first.
  Bucket largest_alike(const Bucket& bucket) const {
    const int rows = std::min(encoder_->tuned_rows(bucket.rows), limits_.max_rows());
    if (rows == bucket.rows) return bucket;
    const int length = ceil_div(rows, bucket.max_seqlen) <= limits_.max_batch ? bucket.max_seqlen : limits_.max_length;
    return {ceil_div(rows, length), length, rows};
  }

  // Make sure a bucket's algorithms are chosen and, where graphs are on, its graph exists.
  void ready(const Bucket& bucket) {
    if (options_.graph ? graphs_.count(bucket) != 0 : seen_.count(bucket) != 0) return;
    gpu_.select();
    const Bucket timed = encoder_->tuned(bucket) ? bucket : largest_alike(bucket);
    upload_random(timed);
    encoder_->tune(stream_, inputs(), timed, logits_.data());
    if (timed.rows != bucket.rows) upload_random(bucket);
    encoder_->forward(stream_, inputs(), bucket, logits_.data());  // once outside the capture: libraries set themselves up
    stream_.wait();
    seen_[bucket] = true;
    if (!options_.graph) return;
    if (graphs_.size() >= kMaxGraphs) {
      const auto oldest = std::min_element(graphs_.begin(), graphs_.end(), [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
      graphs_.erase(oldest);
    }
    graphs_.emplace(bucket, Graph{Replay(stream_, [&] { encoder_->forward(stream_, inputs(), bucket, logits_.data()); }), uses_});
  }

  // Without a graph too, launches are as large as the bucket: what is searched by shape is then searched once a bucket.
  void enqueue(const Bucket& bucket) {
    if (!options_.graph) return encoder_->forward(stream_, inputs(), bucket, logits_.data());
    Graph& graph = graphs_.at(bucket);
    graph.last_use = ++uses_;
    graph.pass.launch();
  }

  EngineFile file_;
  RunnerOptions options_;
  EncoderLimits limits_;  // ahead of the GPU: a size that the engine does not take is refused on any machine
  Gpu gpu_;
  TimedStream stream_;
  std::unique_ptr<Encoder> encoder_;
  int header_ = 0;  // ints before the triples
  Buffer<int> inputs_;
  PinnedBuffer<int> staging_;
  Buffer<float> logits_;
  PinnedBuffer<float> results_;
  std::map<Bucket, Graph> graphs_;
  std::map<Bucket, bool> seen_;
  unsigned long long uses_ = 0;
  Bucket staged_{};
  std::vector<int> staged_inputs_;  // as uploaded
  bool staged_on_device_ = false;
  mutable std::mutex mutex_;
};

}  // namespace

std::unique_ptr<Runner> load_runner(const std::string& path, const RunnerOptions& options) {
  if (is_plan(path)) return load_plan(path, options);
  return std::make_unique<CudaRunner>(path, options);
}

int check_batch(const HostBatch& batch, const Config& config, int max_batch, int max_length) {
  if (batch.size < 1 || batch.size > max_batch) refuse("a batch of ", batch.size, " sequences was given; this engine takes 1 to ", max_batch);
  if (batch.cu_seqlens[0] != 0) refuse("cu_seqlens begins with ", batch.cu_seqlens[0], ", not with 0");
  int longest = 0;
  for (int i = 0; i < batch.size; ++i) {
    const int length = batch.cu_seqlens[i + 1] - batch.cu_seqlens[i];
    if (length < 1 || length > max_length) refuse("sequence ", i, " has ", length, " tokens; this engine takes 1 to ", max_length);
    longest = std::max(longest, length);
  }
  const int tokens = batch.cu_seqlens[batch.size];
  for (int i = 0; i < tokens; ++i) {
    if (batch.ids[i] < 0 || batch.ids[i] >= config.vocab_size) refuse("token ", i, " has id ", batch.ids[i], "; the vocabulary has ", config.vocab_size);
    if (batch.segments[i] < 0 || batch.segments[i] >= config.type_vocab_size) {
      refuse("token ", i, " has segment ", batch.segments[i], "; the model knows ", config.type_vocab_size);
    }
  }
  return longest;
}

}  // namespace bert
