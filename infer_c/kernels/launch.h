// SPDX-License-Identifier: Apache-2.0
// One way to launch a kernel: grid, block, shared memory, and the two Hopper attributes the engine uses (clusters and
// programmatic dependent launch). Every launch is checked.
#pragma once

#include <atomic>

#include "../common.h"

namespace bert {

inline int current_device() {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

inline int multiprocessor_count() {  // of the current device
  int count = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, current_device()));
  return count;
}

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  int cluster = 1;       // blocks along x that share a cluster; sm_90
  bool overlap = false;  // may start before the kernel ahead of it in the stream ends; it calls wait_for_previous(). sm_90
};

template <class... Params, class... Args>
void launch(cudaStream_t stream, const Launch& shape, void (*kernel)(Params...), Args&&... args) {
  cudaLaunchAttribute attributes[3];
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs].val.clusterDim.z = 1;
    ++config.numAttrs;
  }
  if (shape.overlap) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs].val.programmaticStreamSerializationAllowed = 1;
    ++config.numAttrs;
  }
  // All kernels ask for the same division of a multiprocessor's memory into L1 cache and shared memory: it changes only while
  // nothing runs there, so that neighbours that want different ones could not overlap.
  attributes[config.numAttrs].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[config.numAttrs].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  ++config.numAttrs;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

// Allow a kernel more dynamic shared memory than the default 48 KB.
template <class Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

// The same once for each device, from a launch; `done` is the kernel's own.
template <class Kernel>
void allow_shared_once(Kernel* kernel, size_t bytes, std::atomic<unsigned long long>& done) {
  const unsigned long long bit = 1ull << (current_device() % 64);
  if (done & bit) return;
  allow_shared(kernel, bytes);
  done |= bit;
}

}  // namespace bert
