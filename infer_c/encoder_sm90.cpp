// SPDX-License-Identifier: Apache-2.0
// The forward pass on Hopper, FP16: five kernels a layer, LayerNorms folded into the products (kernels/product_sm90.h),
// each kernel launched before the one ahead of it ends.
#include <vector>

#include "encoder.h"
#include "kernels/attention.h"
#include "kernels/fold.h"
#include "kernels/head.h"
#include "kernels/layernorm.h"
#include "kernels/product_lt.h"
#include "product_search.h"
#include "upload.h"

namespace bert {

namespace {

// Weights of one product, as its kernel wants them.
struct Operand {
  const __half* weights = nullptr;
  int columns = 0, depth = 0;
  const float *bias = nullptr, *factor = nullptr;  // product_sm90.h, struct Product
  const __half* half_bias = nullptr;               // b', whole and in FP16, for a library's epilogue
  WeightMaps maps;
};

struct Layer {
  Operand products[kProducts];
};

class EncoderSm90 final : public Encoder {
 public:
  EncoderSm90(const EngineFile& file, const EncoderLimits& limits)
      : config_(file.info().config),
        weights_(file),
        capacity_(round_up(limits.max_rows(), 2 * kRowBox)),
        x_{half_rows(config_.hidden_size), half_rows(config_.hidden_size)},
        qkv_(half_rows(3 * config_.hidden_size)),
        context_(half_rows(config_.hidden_size)),
        inner_(half_rows(config_.intermediate_size)),
        stats_{Buffer<float2>(stats_size(), true), Buffer<float2>(stats_size(), true)},
        search_(config_, Format::half) {
    prepare_products(Format::half);
    load();
    table_normal_ = table_;
    table_normal_.gamma = weights_.constant(config_.hidden_size, 1.f);
    table_normal_.beta = weights_.constant(config_.hidden_size, 0.f);
    const int hidden = config_.hidden_size;
    const __half* inputs[] = {x_[0].data(), context_.data(), x_[1].data(), inner_.data()};
    for (int i = 0; i < kProducts; ++i) {
      const int depth = i == 3 ? config_.intermediate_size : hidden;
      input_maps_[i] = BoxMaps(inputs[i], Format::half, capacity_, depth);
    }
    fast_attention_ = attention_sm90_fits(config_.head_size(), limits.max_length);
    if (fast_attention_) attention_maps_ = attention_maps(qkv_.data(), capacity_, attention_shape({}));
  }

  void tune(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) override {
    search_.run(stream, bucket.rows, [&] { forward(stream, in, bucket, logits); }, true);
  }
  int tuned_rows(int rows) const override { return ProductSearch::row_key(rows); }
  bool tuned(const Bucket& bucket) const override { return search_.knows(bucket.rows); }

  void forward(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) override {
    const int hidden = config_.hidden_size, rows = bucket.rows;
    const ProductSearch::Choice choice = search_.at(rows);
    if (choice[0].library()) return forward_library(stream, in, bucket, logits);
    const auto stats_of = [&](int which, const Variant& v) { return RowStats{stats_[which].data(), ceil_div(hidden, v.tile_columns), v.tile_columns}; };
    const RowStats before{stats_[0].data(), 1, hidden}, middle = stats_of(1, choice[1]), after = stats_of(0, choice[3]);
    __half *x0 = x_[0].data(), *x1 = x_[1].data();

    embed_sum(stream, config_, in, table_, x0, before, rows);
    RowStats stats = before;
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = layers_[l];
      // Of many rows, the last ones written are in the L2 cache: each kernel begins where the one before ended.
      const auto run = [&](int i, Epilogue epilogue, __half* out, const RowStats& in_stats, const __half* residual, const RowStats& out_stats) {
        const Operand& o = layer.products[i];
        Product product{in.tokens, o.columns, o.depth, out, o.bias, o.factor, in_stats, config_.layer_norm_eps, residual, out_stats};
        product.descending = i % 2 == 0;
        if (i + 1 < kProducts || l + 1 < layers_.size()) product.read_next(i + 1 < kProducts ? layer.products[i + 1] : layers_[l + 1].products[0], Format::half);
        product_sm90(stream, choice[i], Format::half, epilogue, input_maps_[i].of(choice[i].input_rows()), o.maps.of(choice[i]), product, rows);
      };
      run(0, Epilogue::norm, qkv_.data(), stats, nullptr, {});
      attend(stream, in, bucket);
      run(1, Epilogue::residual, x1, stats, x0, middle);
      run(2, config_.gelu_erf ? Epilogue::norm_gelu_erf : Epilogue::norm_gelu_tanh, inner_.data(), middle, nullptr, {});
      run(3, Epilogue::residual, x0, middle, x1, after);
      stats = after;
    }
    head_of_sum(stream, x0, stats, last_gamma_, last_beta_, config_.layer_norm_eps, head_.kernel, head_.bias, logits, in.tokens, rows, hidden);
  }

  size_t weight_bytes() const override { return weights_.bytes(); }
  size_t activation_bytes() const override {
    return x_[0].bytes() + x_[1].bytes() + qkv_.bytes() + context_.bytes() + inner_.bytes() + stats_[0].bytes() + stats_[1].bytes();
  }
  std::string name() const override { return fast_attention_ ? "sm_90a FP16" : "sm_90a FP16, plain attention"; }

  std::string choices() const override { return search_.json(); }
  void set_choices(const std::string& json) override { search_.read(json); }

 private:
  Buffer<__half> half_rows(int columns) const { return Buffer<__half>(static_cast<size_t>(capacity_) * columns, true); }
  size_t stats_size() const { return static_cast<size_t>(capacity_) * ceil_div(config_.hidden_size, kNarrowestTile); }
  AttentionShape attention_shape(const Bucket& b) const { return {b.batch, b.max_seqlen, config_.num_attention_heads, config_.head_size()}; }

  void attend(cudaStream_t stream, const Inputs& in, const Bucket& bucket) {
    if (fast_attention_) {
      attention_sm90(stream, attention_maps_, context_.data(), Format::half, {}, in.cu_seqlens, attention_shape(bucket));
    } else {
      attention_plain<__half>(stream, qkv_.data(), context_.data(), in.cu_seqlens, attention_shape(bucket));
    }
  }

  // The same pass with cuBLASLt's products. It has no epilogue for a folded norm, so rows are normalised by a kernel of their
  // own between the products; seven kernels a layer, on the same folded weights.
  void forward_library(cudaStream_t stream, const Inputs& in, const Bucket& bucket, float* logits) {
    const int hidden = config_.hidden_size, inner = config_.intermediate_size, rows = bucket.rows;
    __half *x0 = x_[0].data(), *x1 = x_[1].data(), *sum = qkv_.data();  // qkv_ is free once attention has read it
    const RowStats stats{stats_[0].data(), 1, hidden};
    const auto normalise = [&](const Operand& o, const __half* residual, __half* out) {
      add_normalise(stream, sum, o.bias, residual, o.factor, out, stats, in.tokens, rows, hidden, config_.layer_norm_eps);
    };
    embed<__half>(stream, config_, in, table_normal_, x0, rows);
    for (const Layer& layer : layers_) {
      const Operand* o = layer.products;
      library_.run(stream, LtEpilogue::bias, x0, o[0].weights, o[0].half_bias, qkv_.data(), rows, 3 * hidden, hidden);
      attend(stream, in, bucket);
      library_.run(stream, LtEpilogue::none, context_.data(), o[1].weights, nullptr, sum, rows, hidden, hidden);
      normalise(o[1], x0, x1);
      library_.run(stream, config_.gelu_erf ? LtEpilogue::bias : LtEpilogue::bias_gelu_tanh, x1, o[2].weights, o[2].half_bias, inner_.data(), rows, inner,
                   hidden);
      if (config_.gelu_erf) gelu_erf_inplace<__half>(stream, inner_.data(), static_cast<size_t>(rows) * inner);
      library_.run(stream, LtEpilogue::none, inner_.data(), o[3].weights, nullptr, sum, rows, hidden, inner);
      normalise(o[3], x1, x0);
    }
    head_of_sum(stream, x0, stats, last_gamma_, last_beta_, config_.layer_norm_eps, head_.kernel, head_.bias, logits, in.tokens, rows, hidden);
  }

  void load();

  Config config_;
  Upload weights_;
  int capacity_;  // rows
  Buffer<__half> x_[2];              // (rows, hidden), before their LayerNorms: layer input, after attention
  Buffer<__half> qkv_, context_, inner_;  // (rows, 3 hidden), (rows, hidden), (rows, intermediate)
  Buffer<float2> stats_[2];          // of x_
  BoxMaps input_maps_[kProducts];
  AttentionMaps attention_maps_;
  bool fast_attention_ = false;
  Embeddings<__half> table_{}, table_normal_{};  // the second normalises and nothing more
  ProductLt library_{true};
  const float *last_gamma_ = nullptr, *last_beta_ = nullptr;
  HeadWeights head_{weights_, config_.hidden_size};
  std::vector<Layer> layers_;
  ProductSearch search_;
};

void EncoderSm90::load() {
  const int hidden = config_.hidden_size, inner = config_.intermediate_size;
  table_ = upload_embeddings<__half>(weights_, config_);
  const float* gamma = weights_.vector("bert_embeddings_layernorm_gamma", hidden);
  const float* beta = weights_.vector("bert_embeddings_layernorm_beta", hidden);

  // A product behind a LayerNorm takes its gamma and beta in; one before a residual adds the residual's LayerNorm.
  const auto folded = [&](const std::string& name, int columns, bool halved) {
    Operand o;
    __half* kernel = weights_.matrix<__half>(name + "_kernel", columns, hidden, kColumnGroup);
    float* bias = weights_.vector(name + "_bias", columns);
    float* sums = weights_.room(columns);
    fold(nullptr, kernel, gamma, beta, sums, bias, columns, hidden);
    __half* half_bias = reinterpret_cast<__half*>(weights_.room(ceil_div(columns, 2)));
    narrow(nullptr, bias, half_bias, columns);
    if (halved) scale(nullptr, bias, 0.5f, columns);  // product_sm90.h, struct Product
    o.weights = kernel, o.columns = columns, o.depth = hidden, o.bias = bias, o.factor = sums, o.half_bias = half_bias;
    return o;
  };
  const auto residual = [&](const std::string& name, int depth) {
    Operand o;
    float* bias = weights_.vector(name + "_bias", hidden);
    add(nullptr, bias, beta, bias, hidden);
    o.weights = weights_.matrix<__half>(name + "_kernel", hidden, depth, kColumnGroup), o.columns = hidden, o.depth = depth, o.bias = bias, o.factor = gamma;
    return o;
  };
  for (int i = 0; i < config_.num_hidden_layers; ++i) {
    const std::string l = "l" + std::to_string(i) + "_";
    Layer layer;
    layer.products[0] = folded(l + "attention_self_qkv", 3 * hidden, false);
    layer.products[1] = residual(l + "attention_output_dense", hidden);
    gamma = weights_.vector(l + "attention_output_layernorm_gamma", hidden);
    beta = weights_.vector(l + "attention_output_layernorm_beta", hidden);
    layer.products[2] = folded(l + "intermediate_dense", inner, !config_.gelu_erf);
    layer.products[3] = residual(l + "output_dense", inner);
    gamma = weights_.vector(l + "output_layernorm_gamma", hidden);
    beta = weights_.vector(l + "output_layernorm_beta", hidden);
    for (Operand& o : layer.products) o.maps = WeightMaps(o.weights, Format::half, o.columns, o.depth);
    layers_.push_back(layer);
  }
  last_gamma_ = gamma, last_beta_ = beta;
  wait_for_load();
}

}  // namespace

std::unique_ptr<Encoder> encoder_sm90(const EngineFile& file, const EncoderLimits& limits) {
  if (!attention_sm90_fits(file.info().config.head_size(), limits.max_length)) check_plain_attention(limits);
  return std::make_unique<EncoderSm90>(file, limits);
}

}  // namespace bert
