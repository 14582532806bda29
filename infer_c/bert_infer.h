// SPDX-License-Identifier: Apache-2.0
// A loaded engine: takes host batches, returns host logits. Owns the stream, the staging buffers and the CUDA graphs; the
// arithmetic is an Encoder's. trt_runner.cpp is a second implementation, for TensorRT plans.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine_file.h"

namespace bert {

// Sequences laid end to end, as helpers/batching.py makes them; host memory, borrowed for the call.
struct HostBatch {
  const int* ids;         // (tokens,)
  const int* segments;    // (tokens,)
  const int* cu_seqlens;  // (size + 1,), first 0, last `tokens`
  int size;
};

struct RunnerOptions {
  int max_batch = 0;   // 0: the engine's own
  int max_length = 0;
  bool graph = false;  // capture each bucket of shapes once, replay it afterwards
  bool plain = false;  // the code path of other GPUs, also on Hopper; for tests and comparisons
  std::string choices;  // algorithms found by an earlier Runner, as choices() returned them; empty: search
};

struct Facts {
  std::string device, path;  // GPU name, encoder name
  int compute_capability = 0, multiprocessors = 0, clock_mhz = 0, driver = 0, runtime = 0;
  size_t weight_bytes = 0, activation_bytes = 0;
};

class Runner {
 public:
  virtual ~Runner() = default;
  virtual const EngineInfo& info() const = 0;
  virtual int max_batch() const = 0;
  virtual int max_length() const = 0;
  // Search algorithms (and capture a graph) for `size` sequences of up to `length` tokens, ahead of the first run.
  virtual void prepare(int size, int length) = 0;
  // Whether a batch of so many sequences, the longest of `longest` tokens, runs without a search of seconds.
  virtual bool searched(int /*size*/, int /*longest*/, int /*tokens*/) const { return true; }
  // logits (tokens, 2). Any thread may call; calls queue.
  virtual void run(const HostBatch& batch, float* logits) = 0;
  // Copy a batch to the device, then run it again and again: milliseconds between two device events around one pass.
  virtual void stage(const HostBatch& batch) = 0;
  virtual float time_staged() = 0;
  virtual Facts facts() const = 0;
  virtual std::string choices() const = 0;
};

// Throw Error when the engine or the machine does not serve, ArgumentError for impossible options.
std::unique_ptr<Runner> load_runner(const std::string& path, const RunnerOptions& options);

// Throw ArgumentError where a batch contradicts itself, the model, or the limits; return its longest sequence.
int check_batch(const HostBatch& batch, const Config& config, int max_batch, int max_length);

}  // namespace bert
