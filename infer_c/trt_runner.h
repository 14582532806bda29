// SPDX-License-Identifier: Apache-2.0
// TensorRT plans behind the Runner interface. Compiled always; without TensorRT at configure time it only says so.
#pragma once

#include <memory>
#include <string>

#include "bert_infer.h"

namespace bert {

// Whether a file begins as a TensorRT plan does.
bool is_plan(const std::string& path);

// TensorRT's version as major * 10000 + minor * 100 + patch; 0 when this build has none.
int tensorrt_version();

// Throw Error when the plan does not fit the machine, TensorRT's version or this build.
std::unique_ptr<Runner> load_plan(const std::string& path, const RunnerOptions& options);

}  // namespace bert
