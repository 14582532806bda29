// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA runtime that the C++ runner uses, over host memory: allocations start as rubbish, streams run at once,
// a capture records and a launch replays.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <vector>

#define __host__
#define __device__

enum cudaError_t { cudaSuccess = 0, cudaErrorFake = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum { cudaStreamNonBlocking = 1, cudaDevAttrClockRate = 13 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };

struct FakeGraph {
  std::vector<std::function<bool()>> work;
};
struct FakeStream {
  FakeGraph* capture = nullptr;
};
using cudaStream_t = FakeStream*;
using cudaGraph_t = FakeGraph*;
using cudaGraphExec_t = FakeGraph*;
using cudaEvent_t = int*;
struct cudaDeviceProp {
  char name[256] = "NVIDIA A100";
  int major = 8, minor = 0, multiProcessorCount = 108;
};

inline std::set<void*>& fake_memory() {
  static std::set<void*> live;
  return live;
}
template <class T>
cudaError_t fake_allocate(T** data, size_t bytes) {
  *data = static_cast<T*>(std::malloc(bytes));
  std::memset(static_cast<void*>(*data), 0x7B, bytes);
  fake_memory().insert(*data);
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** data, size_t bytes) {
  return fake_allocate(data, bytes);
}
template <class T>
cudaError_t cudaMallocHost(T** data, size_t bytes) {
  return fake_allocate(data, bytes);
}
inline cudaError_t cudaFree(void* data) {
  if (fake_memory().erase(data) == 0) return cudaErrorFake;
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
inline cudaError_t cudaMemset(void* data, int value, size_t bytes) { return std::memset(data, value, bytes), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) { return std::memcpy(to, from, bytes), cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline thread_local int fake_device = 0;  // of the calling thread
inline cudaError_t cudaSetDevice(int device) { return fake_device = device, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) { return *properties = {}, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = 1'000'000, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = new FakeStream, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return stream && stream->capture ? cudaErrorFake : cudaSuccess; }
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = new int(0), cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return fake_device == 0 ? cudaSuccess : cudaErrorFake; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1.5f, cudaSuccess; }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) { return stream->capture = new FakeGraph, cudaSuccess; }
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return *executable = new FakeGraph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (const auto& work : graph->work) {
    if (!work()) return cudaErrorFake;
  }
  return cudaSuccess;
}
inline const char* cudaGetErrorName(cudaError_t) { return "fake"; }
inline const char* cudaGetErrorString(cudaError_t) { return "fake failure"; }
