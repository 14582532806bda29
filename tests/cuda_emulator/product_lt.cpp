// SPDX-License-Identifier: Apache-2.0
// In cuBLASLt's place: products by three loops.
#include "kernels/product_lt.h"

#include <cmath>

#include "machine.h"

namespace bert {

struct ProductLt::Plan {};

ProductLt::ProductLt(bool fp16) : fp16_(fp16) {}
ProductLt::~ProductLt() = default;

namespace {

float gelu(float x) { return 0.5f * x * (1.f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }

template <class T>
void run_as(LtEpilogue epilogue, const T* input, const T* weights, const T* bias, T* out, int rows, int columns, int depth) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      float sum = epilogue == LtEpilogue::none ? 0.f : static_cast<float>(bias[c]);
      for (int k = 0; k < depth; ++k) sum += static_cast<float>(input[r * depth + k]) * static_cast<float>(weights[c * depth + k]);
      out[r * columns + c] = static_cast<T>(epilogue == LtEpilogue::bias_gelu_tanh ? gelu(sum) : sum);
    }
  }
}

}  // namespace

void ProductLt::run(cudaStream_t stream, LtEpilogue epilogue, const void* input, const void* weights, const void* bias, void* out, int rows, int columns,
                    int depth) {
  emulator::enqueue(stream, [=, fp16 = fp16_] {
    const auto as = [&](auto type) {
      using T = decltype(type);
      run_as(epilogue, static_cast<const T*>(input), static_cast<const T*>(weights), static_cast<const T*>(bias), static_cast<T*>(out), rows, columns, depth);
    };
    fp16 ? as(__half()) : as(0.f);
  });
}

}  // namespace bert
