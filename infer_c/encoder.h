// SPDX-License-Identifier: Apache-2.0
// The forward pass on the device, from ids to logits: one interface, three implementations. `encoder_plain` runs on any GPU
// from sm_80 up, in FP16 or FP32, on cuBLASLt; the others run on Hopper with the project's own products, in FP16 or in INT8 and FP8.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <tuple>

#include "engine_file.h"
#include "kernels/embedding.h"

namespace bert {

// Upper limits of a launch; the device values in Inputs say what is really there.
struct Bucket {
  int batch = 0;
  int max_seqlen = 0;
  int rows = 0;  // tokens

  bool operator<(const Bucket& other) const {
    return std::tie(batch, max_seqlen, rows) < std::tie(other.batch, other.max_seqlen, other.rows);
  }
};

class Encoder {
 public:
  virtual ~Encoder() = default;
  // Choose algorithms for a bucket by timing; `in` holds a batch that fills it. Not during capture. May be called again.
  virtual void tune(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) = 0;
  // The most rows of a bucket that shares its choice with one of so many.
  virtual int tuned_rows(int rows) const { return rows; }
  // Whether that is done for this bucket, or takes no time worth mentioning.
  virtual bool tuned(const Bucket&) const { return true; }
  // Enqueue everything; logits (rows, 2). Allocates nothing, so it can be captured once `tune` has seen the bucket.
  virtual void forward(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) = 0;

  virtual size_t weight_bytes() const = 0;
  virtual size_t activation_bytes() const = 0;
  virtual std::string name() const = 0;
  // The choices made so far, to be given to a later Encoder of the same engine and machine; a JSON object.
  virtual std::string choices() const = 0;
  virtual void set_choices(const std::string& json) = 0;
};

struct EncoderLimits {
  int max_batch;
  int max_length;
  int max_rows() const { return max_batch * max_length; }
};

// Where attention is attention_plain's: a grid has no more places for sequences.
inline void check_plain_attention(const EncoderLimits& limits) {
  constexpr int kMostSequences = 65535;
  if (limits.max_batch > kMostSequences) {
    refuse("a batch of ", limits.max_batch, " sequences is more than the ", kMostSequences, " that this engine runs on this GPU at a time; give a smaller one");
  }
}

std::unique_ptr<Encoder> encoder_plain(const EngineFile& file, const EncoderLimits& limits);
std::unique_ptr<Encoder> encoder_sm90(const EngineFile& file, const EncoderLimits& limits);

// For tests: called ahead of each product with its layer, its place there (0 to 3), its 8-bit input on the device, (rows, columns),
// and, where a residual is added, that in FP16 before its LayerNorm, (rows, hidden). Ahead of attention, as place 4, with queries and
// keys, (rows, 2 hidden), and values, FP16.
using Trace = std::function<void(int layer, int product, const uint8_t* input, int columns, const __half* residual)>;
std::unique_ptr<Encoder> encoder_8bit_sm90(const EngineFile& file, const EncoderLimits& limits, Trace trace = nullptr);

}  // namespace bert
