// SPDX-License-Identifier: Apache-2.0
// The forward pass on Hopper with INT8 or FP8 products: seven kernels a layer. 8-bit values flow from LayerNorm, attention and
// GELU into the products, and as queries and keys into attention; attention's values and what a LayerNorm adds up stay FP16, the
// latter stored before the norm (kernels/product_sm90.h).
#include <cmath>
#include <vector>

#include "encoder.h"
#include "kernels/attention.h"
#include "kernels/fold.h"
#include "kernels/head.h"
#include "kernels/layernorm.h"
#include "product_search.h"
#include "upload.h"

namespace bert {

namespace {

// Weights of one product, and what reads it needs to know.
struct Operand {
  const uint8_t* weights = nullptr;
  int columns = 0, depth = 0;
  const float *scale = nullptr, *bias = nullptr, *factor = nullptr;  // product_sm90.h, struct Product
  float inverse_scale = 0;                                           // of its input: stored value / value
  WeightMaps maps;
};

struct Layer {
  const float *gamma = nullptr, *beta = nullptr, *inner_gamma = nullptr, *inner_beta = nullptr;  // LayerNorms before products 0 and 2
  float score_scale = 0;  // a product of queries and keys / that of the stored ones
  Operand products[kProducts];
};

class EncoderEightBit final : public Encoder {
 public:
  EncoderEightBit(const EngineFile& file, const EncoderLimits& limits, Trace trace)
      : config_(file.info().config),
        format_(file.info().precision == "int8" ? Format::int8 : Format::fp8),
        trace_(std::move(trace)),
        weights_(file),
        capacity_(round_up(limits.max_rows(), 2 * kRowBox)),
        sum_{rows_of<__half>(config_.hidden_size), rows_of<__half>(config_.hidden_size)},
        query_key_(rows_of<uint8_t>(2 * config_.hidden_size)),
        value_(rows_of<__half>(config_.hidden_size)),
        normal_(rows_of<uint8_t>(config_.hidden_size)),
        context_(rows_of<uint8_t>(config_.hidden_size)),
        inner_(rows_of<uint8_t>(config_.intermediate_size)),
        stats_{Buffer<float2>(capacity_, true), Buffer<float2>(capacity_, true)},
        search_(config_, format_) {
    if (!attention_sm90_fits(config_.head_size(), limits.max_length)) {
      fail("8-bit engines run heads of size 32 and 64 and up to 512 tokens here, not ", config_.head_size(), " and ", limits.max_length,
           "; build with --fp16");
    }
    prepare_products(format_);
    load(file);
    const uint8_t* inputs[] = {normal_.data(), context_.data(), normal_.data(), inner_.data()};
    for (int i = 0; i < kProducts; ++i) input_maps_[i] = BoxMaps(inputs[i], format_, capacity_, i == 3 ? config_.intermediate_size : config_.hidden_size);
    attention_maps_ = attention_maps(query_key_.data(), value_.data(), capacity_, attention_shape({}));
  }

  void tune(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) override {
    search_.run(stream, bucket.rows, [&] { forward(stream, in, bucket, logits); }, false);
  }
  int tuned_rows(int rows) const override { return ProductSearch::row_key(rows); }
  bool tuned(const Bucket& bucket) const override { return search_.knows(bucket.rows); }

  void forward(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) override {
    const int hidden = config_.hidden_size, rows = bucket.rows;
    const float eps = config_.layer_norm_eps;
    const ProductSearch::Choice choice = search_.at(rows);
    const Epilogue gelu = config_.gelu_erf ? Epilogue::gelu_erf : Epilogue::gelu_tanh;
    const RowStats stats[] = {{stats_[0].data(), 1, hidden}, {stats_[1].data(), 1, hidden}};
    embed_quantise(stream, config_, in, table_, sum_[0].data(), stats[0], format_, layers_[0].products[0].inverse_scale, normal_.data(), rows);
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = layers_[l];
      const auto normalise = [&](int which, const float* gamma, const float* beta, const Operand& reader, bool descending) {
        quantise_layernorm(stream, format_, sum_[which].data(), gamma, beta, reader.inverse_scale, normal_.data(), stats[which], in.tokens, rows, hidden, eps,
                           descending);
      };
      // Residuals are what the LayerNorm before read, and its statistics; `out` may be 8 bits wide, scaled for its reader.
      const auto product = [&](int i, Epilogue epilogue, void* out, int residual, float inverse_scale, bool descending) {
        const Operand& o = layer.products[i];
        if (trace_) {
          const uint8_t* input = i == 1 ? context_.data() : i == 3 ? inner_.data() : normal_.data();
          trace_(static_cast<int>(l), i, input, o.depth, epilogue == Epilogue::residual ? sum_[residual].data() : nullptr);
        }
        Product p{in.tokens, o.columns, o.depth, out, o.bias, o.factor, stats[residual], eps, sum_[residual].data(), {}, o.scale, inverse_scale};
        p.descending = descending;
        if (epilogue == Epilogue::bias) p.narrow_out = query_key_.data(), p.narrow_columns = 2 * hidden;
        if (i + 1 < kProducts || l + 1 < layers_.size()) p.read_next(i + 1 < kProducts ? layer.products[i + 1] : layers_[l + 1].products[0], format_);
        product_sm90(stream, choice[i], format_, epilogue, input_maps_[i].of(choice[i].input_rows()), o.maps.of(choice[i]), p, rows);
      };
      // Of many rows, the last ones written are in the L2 cache: each kernel begins where the one before ended.
      product(0, Epilogue::bias, value_.data(), 0, 1.f, true);
      if (trace_) trace_(static_cast<int>(l), kProducts, query_key_.data(), 2 * hidden, value_.data());
      attention_sm90(stream, attention_maps_, context_.data(), format_, {layer.score_scale, layer.products[1].inverse_scale}, in.cu_seqlens,
                     attention_shape(bucket));
      product(1, Epilogue::residual, sum_[1].data(), 0, 1.f, false);
      normalise(1, layer.inner_gamma, layer.inner_beta, layer.products[2], true);
      product(2, gelu, inner_.data(), 0, layer.products[3].inverse_scale, false);
      product(3, Epilogue::residual, sum_[0].data(), 1, 1.f, true);
      if (l + 1 < layers_.size()) normalise(0, layers_[l + 1].gamma, layers_[l + 1].beta, layers_[l + 1].products[0], false);
    }
    head_of_sum(stream, sum_[0].data(), {}, last_gamma_, last_beta_, eps, head_.kernel, head_.bias, logits, in.tokens, rows, hidden);
  }

  size_t weight_bytes() const override { return weights_.bytes(); }
  size_t activation_bytes() const override {
    return sum_[0].bytes() + sum_[1].bytes() + query_key_.bytes() + value_.bytes() + normal_.bytes() + context_.bytes() + inner_.bytes() +
           stats_[0].bytes() + stats_[1].bytes();
  }
  std::string name() const override { return format_ == Format::int8 ? "sm_90a INT8" : "sm_90a FP8"; }
  std::string choices() const override { return search_.json(); }
  void set_choices(const std::string& json) override { search_.read(json); }

 private:
  template <class T>
  Buffer<T> rows_of(int columns) const {
    return Buffer<T>(static_cast<size_t>(capacity_) * columns, true);
  }
  AttentionShape attention_shape(const Bucket& b) const { return {b.batch, b.max_seqlen, config_.num_attention_heads, config_.head_size()}; }
  void load(const EngineFile& file);

  Config config_;
  Format format_;
  Trace trace_;
  Upload weights_;
  int capacity_;                      // rows
  Buffer<__half> sum_[2];             // (rows, hidden), before their LayerNorms: layer input, after attention
  Buffer<uint8_t> query_key_;         // (rows, 2 hidden)
  Buffer<__half> value_;              // (rows, hidden)
  Buffer<uint8_t> normal_, context_, inner_;  // (rows, hidden), (rows, hidden), (rows, intermediate): what products read
  Buffer<float2> stats_[2];           // of sum_, one a row
  ProductSearch search_;
  BoxMaps input_maps_[kProducts];
  AttentionMaps attention_maps_;
  Embeddings<__half> table_{};
  const float *last_gamma_ = nullptr, *last_beta_ = nullptr;
  HeadWeights head_{weights_, config_.hidden_size};
  std::vector<Layer> layers_;
};

void EncoderEightBit::load(const EngineFile& file) {
  const int hidden = config_.hidden_size, inner = config_.intermediate_size;
  table_ = upload_embeddings<__half>(weights_, config_);
  const float* gamma = weights_.vector("bert_embeddings_layernorm_gamma", hidden);
  const float* beta = weights_.vector("bert_embeddings_layernorm_beta", hidden);
  table_.gamma = gamma, table_.beta = beta;
  const auto scale_of = [&](const std::string& name) {
    const float scale = *static_cast<const float*>(file.tensor(name, "F32", {1}).data);
    if (!(scale > 0) || std::isinf(scale) || std::isinf(1 / scale)) fail(name, " is ", scale, "; build the engine again");
    return scale;
  };
  const auto operand = [&](const std::string& name, int columns, int depth, bool residual) {
    Operand o;
    o.weights = static_cast<const uint8_t*>(weights_.bytes_of(name + "_kernel", format_ == Format::int8 ? "I8" : "U8", columns, depth, kColumnGroup));
    o.columns = columns, o.depth = depth;
    o.scale = weights_.vector(name + "_scale", columns);
    float* bias = weights_.vector(name + "_bias", columns);
    if (residual) add(nullptr, bias, beta, bias, hidden);  // the residual's LayerNorm is finished in the product
    o.bias = bias;
    o.factor = gamma;
    o.inverse_scale = 1 / scale_of(name + "_input_scale");
    o.maps = WeightMaps(o.weights, format_, columns, depth);
    return o;
  };
  for (int i = 0; i < config_.num_hidden_layers; ++i) {
    const std::string l = "l" + std::to_string(i) + "_";
    Layer layer;
    layer.gamma = gamma, layer.beta = beta;
    layer.score_scale = scale_of(l + "attention_self_score_scale");
    layer.products[0] = operand(l + "attention_self_qkv", 3 * hidden, hidden, false);
    layer.products[1] = operand(l + "attention_output_dense", hidden, hidden, true);
    layer.inner_gamma = gamma = weights_.vector(l + "attention_output_layernorm_gamma", hidden);
    layer.inner_beta = beta = weights_.vector(l + "attention_output_layernorm_beta", hidden);
    layer.products[2] = operand(l + "intermediate_dense", inner, hidden, false);
    layer.products[3] = operand(l + "output_dense", hidden, inner, true);
    gamma = weights_.vector(l + "output_layernorm_gamma", hidden);
    beta = weights_.vector(l + "output_layernorm_beta", hidden);
    layers_.push_back(layer);
  }
  last_gamma_ = gamma, last_beta_ = beta;
  wait_for_load();
}

}  // namespace

std::unique_ptr<Encoder> encoder_8bit_sm90(const EngineFile& file, const EncoderLimits& limits, Trace trace) {
  return std::make_unique<EncoderEightBit>(file, limits, std::move(trace));
}

}  // namespace bert
