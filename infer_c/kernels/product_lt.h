// SPDX-License-Identifier: Apache-2.0
// Matrix products through cuBLASLt, for every GPU and both precisions: bias and tanh-GELU in the epilogue, the algorithm
// searched per shape by timing.
#pragma once

#include <cublasLt.h>
#include <cuda_fp16.h>

#include <map>
#include <string>
#include <tuple>

#include "../common.h"

namespace bert {

enum class LtEpilogue { none, bias, bias_gelu_tanh };

class ProductLt {
 public:
  explicit ProductLt(bool fp16);
  ~ProductLt();
  ProductLt(const ProductLt&) = delete;
  ProductLt& operator=(const ProductLt&) = delete;

  // out (rows, columns) = epilogue(input (rows, depth) weights (columns, depth)^T + bias (columns,)). All of one type:
  // half with FP32 accumulation, or float without TF32. A shape seen for the first time is searched; never during capture.
  void run(cudaStream_t stream, LtEpilogue epilogue, const void* input, const void* weights, const void* bias, void* out, int rows, int columns, int depth);

 private:
  struct Plan;
  Plan& plan(cudaStream_t stream, LtEpilogue epilogue, const void* input, const void* weights, const void* bias, void* out, int rows, int columns, int depth);

  bool fp16_;
  cublasLtHandle_t handle_ = nullptr;
  Buffer<char> workspace_;
  std::map<std::tuple<LtEpilogue, int, int, int>, Plan*> plans_;
};

}  // namespace bert
