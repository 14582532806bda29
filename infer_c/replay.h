// SPDX-License-Identifier: Apache-2.0
// Captures work into a CUDA graph, for replay and for timing: launched one by one, short kernels would measure the host.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "common.h"

namespace bert {

// Capture what `enqueue` puts on the stream. Where it throws, the stream stays usable.
template <class Enqueue>
cudaGraphExec_t capture_graph(cudaStream_t stream, Enqueue&& enqueue) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  CUDA_CHECK(status);
  return executable;
}

class Event {
 public:
  Event() { CUDA_CHECK(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Two events that time what lies between them on a stream.
class Stopwatch {
 public:
  // Milliseconds of what `enqueue` puts on the stream.
  template <class Enqueue>
  float milliseconds(cudaStream_t stream, Enqueue&& enqueue) const {
    CUDA_CHECK(cudaEventRecord(begin_, stream));
    enqueue();
    CUDA_CHECK(cudaEventRecord(end_, stream));
    CUDA_CHECK(cudaEventSynchronize(end_));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
    return ms;
  }

 private:
  Event begin_, end_;
};

// Captured work, to be launched again and again.
class Replay {
 public:
  template <class Enqueue>
  Replay(cudaStream_t stream, Enqueue&& enqueue) : stream_(stream), graph_(capture_graph(stream, enqueue)) {}
  Replay(Replay&& other) noexcept : stream_(other.stream_), graph_(std::exchange(other.graph_, nullptr)) {}
  Replay& operator=(Replay&& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~Replay() {
    if (graph_) cudaGraphExecDestroy(graph_);
  }

  void launch() const { CUDA_CHECK(cudaGraphLaunch(graph_, stream_)); }
  float milliseconds(const Stopwatch& watch) const {
    return watch.milliseconds(stream_, [&] { launch(); });
  }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t graph_;
};

// The time that `a` takes over that of `b`, by the medians of `runs` replays of each, in turns: in passes of many rows the GPU grows
// hot and its clock falls, so that times taken apart do not compare. One of each, ahead of them, does not count. What differs
// by 3 % after five is decided: most candidates of a search are far behind, and those that are not deserve the time.
inline float time_ratio(const Replay& a, const Replay& b, int runs, const Stopwatch& watch) {
  constexpr int kGlance = 5;
  constexpr float kClear = 1.03f;
  std::vector<float> times[2];
  const auto ratio = [&] {
    for (auto& t : times) std::nth_element(t.begin(), t.begin() + t.size() / 2, t.end());
    return times[0][times[0].size() / 2] / times[1][times[1].size() / 2];
  };
  for (int i = 0; i <= runs; ++i) {
    const float ms[] = {a.milliseconds(watch), b.milliseconds(watch)};
    for (int k = 0; i > 0 && k < 2; ++k) times[k].push_back(ms[k]);
    if (i != kGlance) continue;
    const float found = ratio();
    if (found > kClear || found * kClear < 1) return found;
  }
  return ratio();
}

}  // namespace bert
