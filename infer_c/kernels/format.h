// SPDX-License-Identifier: Apache-2.0
// The number formats of what products read: FP16, or one of the two 8-bit ones with a scale beside it.
#pragma once

#include <cuda_runtime.h>

namespace bert {

enum class Format { half, int8, fp8 };  // fp8 is E4M3

__host__ __device__ constexpr int bytes_of(Format format) { return format == Format::half ? 2 : 1; }

}  // namespace bert
