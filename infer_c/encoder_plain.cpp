// SPDX-License-Identifier: Apache-2.0
// The forward pass for any GPU from sm_80 up, FP16 or FP32: cuBLASLt products, LayerNorm as a kernel of its own.
#include <cuda_fp16.h>

#include <vector>

#include "encoder.h"
#include "kernels/attention.h"
#include "kernels/head.h"
#include "kernels/layernorm.h"
#include "kernels/product_lt.h"
#include "upload.h"

namespace bert {

namespace {

template <class T>
struct Layer {
  const T *qkv, *output, *intermediate, *down;      // (3 hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)
  const T *qkv_bias, *intermediate_bias;            // in the products' epilogues, so of the products' type
  const float *output_bias, *down_bias;             // added before the LayerNorm
  const float *gamma1, *beta1, *gamma2, *beta2;
};

template <class T>
class EncoderPlain final : public Encoder {
 public:
  EncoderPlain(const EngineFile& file, const EncoderLimits& limits)
      : config_(file.info().config), weights_(file), product_(sizeof(T) == 2), buffers_(limits.max_rows(), config_) {
    const int hidden = config_.hidden_size, inner = config_.intermediate_size;
    table_ = upload_embeddings<T>(weights_, config_);
    table_.gamma = weights_.vector("bert_embeddings_layernorm_gamma", hidden);
    table_.beta = weights_.vector("bert_embeddings_layernorm_beta", hidden);
    for (int i = 0; i < config_.num_hidden_layers; ++i) {
      const std::string l = "l" + std::to_string(i) + "_";
      Layer<T> layer{};
      layer.qkv = weights_.matrix<T>(l + "attention_self_qkv_kernel", 3 * hidden, hidden);
      layer.output = weights_.matrix<T>(l + "attention_output_dense_kernel", hidden, hidden);
      layer.intermediate = weights_.matrix<T>(l + "intermediate_dense_kernel", inner, hidden);
      layer.down = weights_.matrix<T>(l + "output_dense_kernel", hidden, inner);
      layer.qkv_bias = weights_.vector_as<T>(l + "attention_self_qkv_bias", 3 * hidden);
      layer.intermediate_bias = weights_.vector_as<T>(l + "intermediate_dense_bias", inner);
      layer.output_bias = weights_.vector(l + "attention_output_dense_bias", hidden);
      layer.down_bias = weights_.vector(l + "output_dense_bias", hidden);
      layer.gamma1 = weights_.vector(l + "attention_output_layernorm_gamma", hidden);
      layer.beta1 = weights_.vector(l + "attention_output_layernorm_beta", hidden);
      layer.gamma2 = weights_.vector(l + "output_layernorm_gamma", hidden);
      layer.beta2 = weights_.vector(l + "output_layernorm_beta", hidden);
      layers_.push_back(layer);
    }
  }

  void tune(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) override { forward(stream, in, bucket, logits); }

  void forward(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) override {
    const int hidden = config_.hidden_size, inner = config_.intermediate_size, rows = bucket.rows;
    const AttentionShape attention{bucket.batch, bucket.max_seqlen, config_.num_attention_heads, config_.head_size()};
    T *x = buffers_.x.data(), *wide = buffers_.wide.data(), *context = buffers_.context.data(), *sum = buffers_.sum.data();
    embed<T>(stream, config_, in, table_, x, rows);
    for (const Layer<T>& l : layers_) {
      product_.run(stream, LtEpilogue::bias, x, l.qkv, l.qkv_bias, wide, rows, 3 * hidden, hidden);
      attention_plain<T>(stream, wide, context, in.cu_seqlens, attention);
      product_.run(stream, LtEpilogue::none, context, l.output, nullptr, sum, rows, hidden, hidden);
      add_layernorm<T>(stream, sum, l.output_bias, x, l.gamma1, l.beta1, x, in.tokens, rows, hidden, config_.layer_norm_eps);
      product_.run(stream, config_.gelu_erf ? LtEpilogue::bias : LtEpilogue::bias_gelu_tanh, x, l.intermediate, l.intermediate_bias, wide, rows, inner,
                   hidden);
      if (config_.gelu_erf) gelu_erf_inplace<T>(stream, wide, static_cast<size_t>(rows) * inner);
      product_.run(stream, LtEpilogue::none, wide, l.down, nullptr, sum, rows, hidden, inner);
      add_layernorm<T>(stream, sum, l.down_bias, x, l.gamma2, l.beta2, x, in.tokens, rows, hidden, config_.layer_norm_eps);
    }
    head<T>(stream, x, head_.kernel, head_.bias, logits, in.tokens, rows, hidden);
  }

  size_t weight_bytes() const override { return weights_.bytes(); }
  size_t activation_bytes() const override { return buffers_.x.bytes() + buffers_.sum.bytes() + buffers_.context.bytes() + buffers_.wide.bytes(); }
  std::string name() const override { return sizeof(T) == 2 ? "plain FP16 (cuBLASLt)" : "plain FP32 (cuBLASLt)"; }
  std::string choices() const override { return "{}"; }
  void set_choices(const std::string&) override {}

 private:
  struct Activations {
    Activations(int rows, const Config& c)
        : x(static_cast<size_t>(rows) * c.hidden_size, true),
          sum(static_cast<size_t>(rows) * c.hidden_size, true),
          context(static_cast<size_t>(rows) * c.hidden_size, true),
          wide(static_cast<size_t>(rows) * std::max(3 * c.hidden_size, c.intermediate_size), true) {}
    Buffer<T> x, sum, context;  // (rows, hidden)
    Buffer<T> wide;             // (rows, 3 hidden) or (rows, inner)
  };

  Config config_;
  Upload weights_;
  ProductLt product_;
  Activations buffers_;
  Embeddings<T> table_{};
  HeadWeights head_{weights_, config_.hidden_size};
  std::vector<Layer<T>> layers_;
};

}  // namespace

std::unique_ptr<Encoder> encoder_plain(const EngineFile& file, const EncoderLimits& limits) {
  check_plain_attention(limits);
  if (file.info().precision == "fp32") return std::make_unique<EncoderPlain<float>>(file, limits);
  return std::make_unique<EncoderPlain<__half>>(file, limits);
}

}  // namespace bert
