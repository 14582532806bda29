# SPDX-License-Identifier: Apache-2.0
# The engine's sources, for every program that compiles it: HOST_SOURCES and CUDA_SOURCES. Without kernels/product_lt.cpp, which is cuBLASLt's.
set(HOST_SOURCES json engine_file bert_infer trt_plan trt_runner encoder_plain encoder_sm90 encoder_8bit_sm90 product_search kernels/product_sm90)
set(CUDA_SOURCES embedding layernorm layernorm_quantise head fold attention_plain attention_sm90 attention_split_sm90 attention_stream_sm90
                 product_few_sm90 product_persistent_sm90)
list(TRANSFORM HOST_SOURCES REPLACE "(.+)" "${CMAKE_CURRENT_LIST_DIR}/\\1.cpp")
list(TRANSFORM CUDA_SOURCES REPLACE "(.+)" "${CMAKE_CURRENT_LIST_DIR}/kernels/\\1.cu")

# A source for each format and epilogue, so that they compile side by side.
foreach(kind half-norm half-norm_gelu_tanh half-norm_gelu_erf half-residual
             int8-bias int8-gelu_tanh int8-gelu_erf int8-residual fp8-bias fp8-gelu_tanh fp8-gelu_erf fp8-residual)
  string(REGEX MATCH "^([^-]*)-(.*)$" _ ${kind})
  set(FORMAT ${CMAKE_MATCH_1})
  set(EPILOGUE ${CMAKE_MATCH_2})
  configure_file(${CMAKE_CURRENT_LIST_DIR}/kernels/product_few.cu.in product_few_${FORMAT}_${EPILOGUE}.cu @ONLY)
  list(APPEND CUDA_SOURCES ${CMAKE_CURRENT_BINARY_DIR}/product_few_${FORMAT}_${EPILOGUE}.cu)
endforeach()
