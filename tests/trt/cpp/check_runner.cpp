// SPDX-License-Identifier: Apache-2.0
// Drives the C++ runner over the fakes beside this file: padded and packed plans, profiles, CUDA graphs, refusals, memory.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <random>
#include <thread>

#include "bert_infer.h"
#include "NvInfer.h"
#include "common.h"
#include "trt_runner.h"

namespace bert {

// bert_infer.cpp has the real one; with it would come the cuda engine and its kernels.
int check_batch(const HostBatch& batch, const Config&, int max_batch, int max_length) {
  int longest = 0;
  for (int i = 0; i < batch.size; ++i) longest = std::max(longest, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
  if (batch.size > max_batch || longest > max_length) refuse("batch ", batch.size, " of length ", longest, " does not fit");
  return longest;
}

}  // namespace bert

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

struct Batch {
  std::vector<int> ids, segments, bounds{0};
  explicit Batch(const std::vector<int>& lengths) {
    std::minstd_rand random(7);
    for (const int length : lengths) {
      for (int j = 0; j < length; ++j) {
        ids.push_back(static_cast<int>(random() % 97));
        segments.push_back(static_cast<int>(random() % 2));
      }
      bounds.push_back(static_cast<int>(ids.size()));
    }
  }
  bert::HostBatch host() const { return {ids.data(), segments.data(), bounds.data(), static_cast<int>(bounds.size()) - 1}; }
};

void check_answers(bert::Runner& runner, const std::vector<int>& lengths, const std::string& what) {
  const Batch batch(lengths);
  std::vector<float> logits(2 * batch.ids.size(), -1.f);
  runner.run(batch.host(), logits.data());
  bool right = true;
  for (size_t i = 0; i + 1 < batch.bounds.size(); ++i) {
    for (int at = batch.bounds[i]; at < batch.bounds[i + 1]; ++at) {
      right &= logits[2 * at] == batch.ids[at] + 1000.f * batch.segments[at] + (at - batch.bounds[i]) / 10.f;
      right &= logits[2 * at + 1] == static_cast<float>(batch.bounds[i + 1] - batch.bounds[i]);
    }
  }
  expect(right, "logits of " + what);
}

std::string write(const std::string& name, const std::string& plan, const std::string& metadata) {
  std::ofstream(name) << plan;
  std::remove((name + ".json").c_str());
  if (!metadata.empty()) std::ofstream(name + ".json") << metadata;
  return name;
}

std::string metadata(const std::string& layout, const std::string& batches, const std::string& lengths, const std::string& version = "10.16.0.72",
                     const std::string& gpu = "NVIDIA A30, compute capability 8.0") {
  return R"({"format": 1, "backend": "tensorrt", "layout": ")" + layout + R"(", "precision": "int8", "batch_sizes": )" + batches +
         R"(, "sequence_lengths": )" + lengths + R"(, "versions": {"tensorrt": ")" + version + R"("}, "gpu": ")" + gpu +
         R"(", "config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 97, )"
         R"("max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "activation": "gelu_tanh"}})";
}

void refused(const std::string& path, const std::string& part, const bert::RunnerOptions& options = {}) {
  try {
    bert::load_plan(path, options);
    expect(false, "nothing refused where \"" + part + "\" was expected");
  } catch (const std::exception& error) {
    expect(std::string(error.what()).find(part) != std::string::npos, "\"" + part + "\" in: " + error.what());
  }
}

const std::string kPadded = "ptrt padded 4  1 2 1 16  1 2 17 64  1 8 1 16  1 8 17 64";
const std::string kPacked = "ptrt packed 2  1 2 1 64  1 8 1 64";

void refused_to_prepare(bert::Runner& runner, int size, int length) {
  try {
    runner.prepare(size, length);
    expect(false, "batch " + std::to_string(size) + " of length " + std::to_string(length) + " was prepared");
  } catch (const bert::ArgumentError&) {
  }
}

void check_runs(bool graph) {
  const std::string mode = graph ? " with graph" : "";
  bert::RunnerOptions options;
  options.graph = graph;
  for (const bool bare : {false, true}) {
    const auto padded = bert::load_plan(write("padded.engine", kPadded, bare ? "" : metadata("padded", "[2, 8]", "[16, 64]")), options);
    expect(padded->max_batch() == 8 && padded->max_length() == 64 && padded->info().layout == "padded", "limits of a padded plan");
    for (int round = 0; round < 2; ++round) {
      for (const auto& lengths : std::vector<std::vector<int>>{{5}, {64, 3}, {16, 16, 2}, {1, 2, 3, 4, 5, 6, 7, 40}, {9, 9}}) check_answers(*padded, lengths, "padded" + mode);
    }
    const auto packed = bert::load_plan(write("packed.engine", kPacked, bare ? "" : metadata("packed", "[2, 8]", "[64]")), options);
    for (const auto& lengths : std::vector<std::vector<int>>{{5}, {64, 64}, {16, 16, 2}, {64, 64, 64, 64, 64, 64, 64, 64}}) check_answers(*packed, lengths, "packed" + mode);
    for (bert::Runner* runner : {padded.get(), packed.get()}) {
      runner->prepare(2, 16);
      const Batch batch({12, 30});
      runner->stage(batch.host());
      expect(runner->time_staged() == 1.5f && runner->time_staged() == 1.5f, "timing" + mode);
      check_answers(*runner, {7, 8}, "a run after timing" + mode);
      runner->prepare(1, 64);
      for (int size : {-1, 0, 9}) refused_to_prepare(*runner, size, 16);
      refused_to_prepare(*runner, 2, -16);
      runner->time_staged();
      expect(nvinfer1::fake_first_id() == batch.ids[0], "what is staged, after other shapes were prepared" + mode);
      std::thread([&] {
        cudaSetDevice(1);
        runner->time_staged();
      }).join();
      expect(runner->time_staged() == 1.5f, "timing after a run" + mode);
    }
  }
  const auto fixed = bert::load_plan(write("static.engine", "ptrt padded 1  4 4 32 32", ""), options);
  check_answers(*fixed, {32, 1}, "a static plan half filled" + mode);
  const auto many = bert::load_plan(write("many.engine", "ptrt padded 1  1 16 1 64", ""), options);
  for (int length = 1; length <= 40; ++length) check_answers(*many, {length, 3}, "more shapes than graphs" + mode);
}

}  // namespace

int main() {
  const size_t before = fake_memory().size();
  for (const bool graph : {false, true}) check_runs(graph);
  expect(fake_memory().size() == before, "all memory freed");
  refused(write("other.engine", kPadded, metadata("padded", "[2, 8]", "[16, 64]", "10.3.0.26")), "built with TensorRT 10.3.0.26, here is 10.16.0");
  refused(write("other.engine", kPadded, metadata("padded", "[2]", "[16]", "10.16.0.72", "Tesla T4, compute capability 7.5")), "built for Tesla T4");
  refused(write("other.engine", "ptrt rubbish", ""), "magicTag failed");
  bert::RunnerOptions large;
  large.max_batch = 9;
  refused(write("other.engine", kPadded, ""), "at most batch 8 of length 64", large);
  const auto runner = bert::load_plan(write("other.engine", kPadded, metadata("padded", "[2, 8]", "[16, 64]")), {});
  try {
    std::vector<float> logits(2 * 65);
    runner->run(Batch({65}).host(), logits.data());
    expect(false, "65 tokens were not refused");
  } catch (const bert::ArgumentError&) {
  }
  if (failures == 0) std::printf("all held\n");
  return failures != 0;
}
