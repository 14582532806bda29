// SPDX-License-Identifier: Apache-2.0
// Error checks and owners of CUDA resources, shared by every file of the engine. Nothing here exits: every failure is
// an exception, which crosses pybind11 as a Python exception.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace bert {

// The engine file or the machine is at fault; Python sees RuntimeError.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The caller's arguments are at fault; Python sees ValueError.
struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Messages are put together without iostreams: where a Python process holds two copies of libstdc++ (a statically linked
// module beside another's shared one), streams find the other copy's locale and crash.
inline std::string as_text(const std::string& value) { return value; }
inline std::string as_text(const char* value) { return value; }
inline std::string as_text(char value) { return std::string(1, value); }
template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number> || std::is_enum_v<Number>>>
std::string as_text(Number value) {
  if constexpr (std::is_floating_point_v<Number>) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%g", static_cast<double>(value));
    return buffer;
  } else if constexpr (std::is_unsigned_v<Number>) {
    return std::to_string(static_cast<unsigned long long>(value));
  } else {
    return std::to_string(static_cast<long long>(value));
  }
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (out.append(as_text(parts)), ...);
  return out;
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(text(parts...));
}

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw ArgumentError(text(parts...));
}

inline void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status != cudaSuccess) {
    fail(call, " failed with ", cudaGetErrorName(status), " (", cudaGetErrorString(status), ") at ", file, ":", line);
  }
}
#define CUDA_CHECK(call) ::bert::check_cuda((call), #call, __FILE__, __LINE__)

// Wait for the work of loading, all of which is on the legacy stream. Not for the device: while another thread captures a graph,
// that is an error, and the end of its capture. What else loading does, and the legacy stream beside streams that do not block on
// it, leaves captures alone: theirs is the thread-local mode (capture_graph), so they need no lock, and no load makes them wait.
inline void wait_for_load() { CUDA_CHECK(cudaStreamSynchronize(nullptr)); }

// Device (or pinned host) memory that is freed with its owner; poisoned by nothing, zeroed when asked.
template <class T, bool kPinned = false>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count, bool zeroed = false) : Buffer() {  // whole from here on: a throw below runs the destructor
    count_ = count;
    if (count == 0) return;
    if constexpr (kPinned) {
      CUDA_CHECK(cudaMallocHost(&data_, bytes()));
    } else {
      CUDA_CHECK(cudaMalloc(&data_, bytes()));
      if (zeroed) CUDA_CHECK(cudaMemset(data_, 0, bytes()));
    }
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ == nullptr) return;
    if constexpr (kPinned) {
      cudaFreeHost(data_);
    } else {
      cudaFree(data_);
    }
  }
  T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
  }
  T* data_ = nullptr;
  size_t count_ = 0;
};

template <class T>
using PinnedBuffer = Buffer<T, true>;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

}  // namespace bert
