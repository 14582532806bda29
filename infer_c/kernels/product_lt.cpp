// SPDX-License-Identifier: Apache-2.0
// cuBLASLt reads matrices by columns. Row-major out = input weights^T is therefore asked for as out^T = weights input^T:
// the first operand is the weights (transposed), the second the input, and the bias runs along the rows of out^T.
#include "product_lt.h"

#include <algorithm>
#include <memory>

#include "../replay.h"

namespace bert {

namespace {

constexpr size_t kWorkspace = 32 << 20;  // what NVIDIA advises for Hopper
constexpr int kCandidates = 8;
constexpr int kTimed = 5;

void check_blas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(call, " failed with ", cublasLtGetStatusName(status));
}
#define BLAS_CHECK(call) check_blas((call), #call)

}  // namespace

struct ProductLt::Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weights = nullptr, input = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algorithm{};

  ~Plan() {
    if (operation) cublasLtMatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t layout : {weights, input, out}) {
      if (layout) cublasLtMatrixLayoutDestroy(layout);
    }
  }
};

ProductLt::ProductLt(bool fp16) : fp16_(fp16), workspace_(kWorkspace) { BLAS_CHECK(cublasLtCreate(&handle_)); }

ProductLt::~ProductLt() {
  for (auto& [key, plan] : plans_) delete plan;
  cublasLtDestroy(handle_);
}

ProductLt::Plan& ProductLt::plan(cudaStream_t stream, LtEpilogue epilogue, const void* input, const void* weights, const void* bias, void* out, int rows,
                                 int columns, int depth) {
  Plan*& slot = plans_[{epilogue, rows, columns, depth}];
  if (slot != nullptr) return *slot;
  auto made = std::make_unique<Plan>();
  const cudaDataType_t type = fp16_ ? CUDA_R_16F : CUDA_R_32F;
  BLAS_CHECK(cublasLtMatmulDescCreate(&made->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  BLAS_CHECK(cublasLtMatmulDescSetAttribute(made->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
  const cublasLtEpilogue_t kinds[] = {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU_BIAS};
  const cublasLtEpilogue_t kind = kinds[static_cast<int>(epilogue)];
  BLAS_CHECK(cublasLtMatmulDescSetAttribute(made->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &kind, sizeof kind));
  if (epilogue != LtEpilogue::none) {
    BLAS_CHECK(cublasLtMatmulDescSetAttribute(made->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
  }
  BLAS_CHECK(cublasLtMatrixLayoutCreate(&made->weights, type, depth, columns, depth));
  BLAS_CHECK(cublasLtMatrixLayoutCreate(&made->input, type, depth, rows, depth));
  BLAS_CHECK(cublasLtMatrixLayoutCreate(&made->out, type, columns, rows, columns));

  cublasLtMatmulPreference_t preference = nullptr;
  BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  const size_t room = workspace_.bytes();
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room);
  cublasLtMatmulHeuristicResult_t found[kCandidates];
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, made->operation, made->weights, made->input, made->out, made->out, preference,
                                                               kCandidates, found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) fail("cuBLASLt has no algorithm for a product of ", rows, " x ", columns, " x ", depth);

  const Stopwatch watch;
  const float one = 1, zero = 0;
  float best = 1e30f;
  for (int i = 0; i < count; ++i) {
    float fastest = 1e30f;
    bool works = true;
    for (int j = 0; j <= kTimed && works; ++j) {  // the first run is not counted
      const float ms = watch.milliseconds(stream, [&] {
        works = cublasLtMatmul(handle_, made->operation, &one, weights, made->weights, input, made->input, &zero, out, made->out, out, made->out,
                               &found[i].algo, workspace_.data(), room, stream) == CUBLAS_STATUS_SUCCESS;
      });
      if (j > 0) fastest = std::min(fastest, ms);
    }
    if (works && fastest < best) {
      best = fastest;
      made->algorithm = found[i].algo;
    }
  }
  if (best >= 1e30f) fail("no cuBLASLt algorithm runs a product of ", rows, " x ", columns, " x ", depth);
  slot = made.release();
  return *slot;
}

void ProductLt::run(cudaStream_t stream, LtEpilogue epilogue, const void* input, const void* weights, const void* bias, void* out, int rows, int columns,
                    int depth) {
  Plan& p = plan(stream, epilogue, input, weights, bias, out, rows, columns, depth);
  if (epilogue != LtEpilogue::none) {
    BLAS_CHECK(cublasLtMatmulDescSetAttribute(p.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
  }
  const float one = 1, zero = 0;
  BLAS_CHECK(cublasLtMatmul(handle_, p.operation, &one, weights, p.weights, input, p.input, &zero, out, p.out, out, p.out, &p.algorithm,
                            workspace_.data(), workspace_.bytes(), stream));
}

}  // namespace bert
