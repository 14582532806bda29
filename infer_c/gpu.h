// SPDX-License-Identifier: Apache-2.0
// What both Runners do alike with the GPU: take the current device, describe it, hold asked-for sizes against the engine's,
// and time work between two events.
#pragma once

#include <string>

#include "bert_infer.h"
#include "common.h"
#include "replay.h"

namespace bert {

class Gpu {
 public:
  // Throw Error where no CUDA device can be used.
  Gpu() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) fail("no CUDA device can be used here");
    CUDA_CHECK(cudaGetDevice(&number_));
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, number_));
  }

  const cudaDeviceProp& properties() const { return properties_; }
  int capability() const { return properties_.major * 10 + properties_.minor; }
  void select() const { CUDA_CHECK(cudaSetDevice(number_)); }  // for the calling thread

  // All that is no Runner's own.
  Facts facts() const {
    Facts f;
    f.device = properties_.name;
    f.compute_capability = capability();
    f.multiprocessors = properties_.multiProcessorCount;
    int khz = 0;
    if (cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, number_) == cudaSuccess) f.clock_mhz = khz / 1000;
    cudaDriverGetVersion(&f.driver);
    cudaRuntimeGetVersion(&f.runtime);
    return f;
  }

 private:
  int number_ = 0;
  cudaDeviceProp properties_{};
};

// The largest batch and length a Runner takes: what was asked for, by default the engine's own.
struct Limits {
  int batch, length;

  Limits(const RunnerOptions& options, const EngineInfo& info)
      : batch(options.max_batch != 0 ? options.max_batch : info.max_batch()), length(options.max_length != 0 ? options.max_length : info.max_length()) {
    if (batch < 1 || length < 1) refuse("batch ", batch, " of length ", length, " was asked for; give 1 and more, or 0 for the engine's own");
    if (batch > info.max_batch() || length > info.max_length()) {
      refuse("batch ", batch, " of length ", length, " was asked for; the engine was built for at most batch ", info.max_batch(), " of length ",
             info.max_length());
    }
    const long long tokens = static_cast<long long>(batch) * length;
    if (tokens > kMostTokens) refuse("batch ", batch, " of length ", length, " has ", tokens, " tokens; infer_c takes at most ", kMostTokens, ", give smaller ones");
  }
};

// Throw ArgumentError where a size to prepare is beyond a Runner's.
inline void check_prepare(const Runner& runner, int size, int length) {
  if (size < 1 || size > runner.max_batch() || length < 1 || length > runner.max_length()) {
    refuse("cannot prepare batch ", size, " of length ", length, "; this engine takes up to batch ", runner.max_batch(), " of length ", runner.max_length());
  }
}

// A stream and what times the work that is put on it.
class TimedStream {
 public:
  TimedStream() { CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  TimedStream(const TimedStream&) = delete;
  TimedStream& operator=(const TimedStream&) = delete;
  ~TimedStream() {
    if (stream_) cudaStreamDestroy(stream_);
  }

  operator cudaStream_t() const { return stream_; }
  void wait() const { CUDA_CHECK(cudaStreamSynchronize(stream_)); }
  template <class Enqueue>
  float milliseconds(Enqueue&& enqueue) const {
    return watch_.milliseconds(stream_, enqueue);
  }

 private:
  cudaStream_t stream_ = nullptr;
  Stopwatch watch_;
};

}  // namespace bert
