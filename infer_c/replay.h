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

// Whether a ratio of times is decided early: most candidates of a search are far behind, and those that are not deserve the time.
inline bool is_clear(float ratio, float limit = 1.03f) { return ratio > limit || ratio * limit < 1; }

inline float median_of(std::vector<float>& times) {
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// The time that short passes of `a` take over that of `b`, by the medians of `runs` replays of each, in turns, so that both meet the
// same GPU. One of each, ahead of them, does not count; what is clear after five is decided.
inline float time_ratio(const Replay& a, const Replay& b, int runs, const Stopwatch& watch) {
  constexpr int kGlance = 5;
  std::vector<float> times[2];
  const auto ratio = [&] { return median_of(times[0]) / median_of(times[1]); };
  for (int i = 0; i <= runs; ++i) {
    const float ms[] = {a.milliseconds(watch), b.milliseconds(watch)};
    for (int k = 0; i > 0 && k < 2; ++k) times[k].push_back(ms[k]);
    if (i != kGlance) continue;
    const float found = ratio();
    if (is_clear(found)) return found;
  }
  return ratio();
}

// The same of long passes, which run at the limit of the GPU's power: their clock follows the power that was drawn a moment before, so
// in turns one that takes more energy would borrow from the other. Each runs by itself until the clock has followed, and then
// counts: a, b, and where that is not clear b again and a again, since the GPU also grows hotter. Two runs in turns before that decide
// where the two are far apart, unless one pass, `pass_ms` of b, takes as long as the clock does.
inline float settled_time_ratio(const Replay& a, const Replay& b, float pass_ms, const Stopwatch& watch) {
  constexpr float kSettle = 60, kCount = 40;  // ms
  constexpr size_t kMostRuns = 50;            // where they take no time, as on the emulator
  if (pass_ms < kSettle) {
    const float ratio = time_ratio(a, b, 2, watch);
    if (is_clear(ratio, 1.06f)) return ratio;
  }
  const auto run_for = [&](const Replay& replay, float limit) {
    std::vector<float> times;
    for (float spent = 0; spent < limit && times.size() < kMostRuns; spent += times.back()) times.push_back(replay.milliseconds(watch));
    return median_of(times);
  };
  const auto settled = [&](const Replay& replay) {
    const float first = run_for(replay, kSettle);
    return first < kSettle ? run_for(replay, kCount) : first;
  };
  const float a1 = settled(a), b1 = settled(b);
  if (is_clear(a1 / b1)) return a1 / b1;
  const float b2 = run_for(b, kCount), a2 = settled(a);
  return (a1 + a2) / (b1 + b2);
}

}  // namespace bert
