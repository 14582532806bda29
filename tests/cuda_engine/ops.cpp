// SPDX-License-Identifier: Apache-2.0
// Single kernels for the tests: NumPy arrays in, NumPy arrays out, and the time of a launch. FP16 travels as uint16.
// Outputs are poisoned with NaN before each launch, so that an element nobody wrote shows.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "encoder.h"
#include "gpu.h"
#include "kernels/attention.h"
#include "kernels/fold.h"
#include "kernels/head.h"
#include "kernels/layernorm.h"
#include "kernels/product_sm90.h"
#include "product_search.h"

namespace py = pybind11;
using namespace bert;
using Half = py::array_t<uint16_t, py::array::c_style>;
using Float = py::array_t<float, py::array::c_style>;
using Int = py::array_t<int, py::array::c_style>;

namespace {

template <class To, class From>
Buffer<To> to_device(const py::array_t<From, py::array::c_style>& a) {
  static_assert(sizeof(To) % sizeof(From) == 0);
  Buffer<To> buffer(a.nbytes() / sizeof(To));
  CUDA_CHECK(cudaMemcpy(buffer.data(), a.data(), a.nbytes(), cudaMemcpyHostToDevice));
  return buffer;
}

// And zeros for `more` rows after the last.
Buffer<uint8_t> bytes_to_device(const py::array& a, int more = 0) {
  Buffer<uint8_t> buffer(a.nbytes() / a.shape(0) * (a.shape(0) + more), true);
  CUDA_CHECK(cudaMemcpy(buffer.data(), a.data(), a.nbytes(), cudaMemcpyHostToDevice));
  return buffer;
}

template <class To>
Buffer<To> poisoned(size_t count) {
  Buffer<To> buffer(count);
  CUDA_CHECK(cudaMemset(buffer.data(), 0xFF, buffer.bytes()));  // NaN in both formats
  return buffer;
}

template <class To, class From>
py::array_t<To> to_host(const Buffer<From>& b, py::ssize_t rows, py::ssize_t columns) {
  CUDA_CHECK(cudaDeviceSynchronize());
  py::array_t<To> out({rows, columns});
  CUDA_CHECK(cudaMemcpy(out.mutable_data(), b.data(), out.nbytes(), cudaMemcpyDeviceToHost));
  return out;
}

// Milliseconds of one of `repeats` launches in a graph: launching them one by one would measure the host.
template <class F>
float time_ms(int repeats, F&& f) {
  CUDA_CHECK(cudaDeviceSynchronize());  // what the default stream copies and poisons
  const TimedStream stream;
  f(stream);
  stream.wait();
  const Replay replay(stream, [&] {
    for (int i = 0; i < repeats; ++i) f(stream);
  });
  std::vector<float> samples(5);
  for (float& ms : samples) ms = stream.milliseconds([&] { replay.launch(); });
  return median_of(samples) / repeats;
}

// Milliseconds of a launch, 0 where it is only run.
template <class F>
float timed(int repeats, F&& run) {
  if (repeats > 0) return time_ms(repeats, run);
  run(nullptr);
  return 0;
}

// numbers: a Variant; input and weights of two (FP16) or one byte a value; stats: (rows, tiles, 2) of tiles `width` wide. Returns out (rows, columns)
// as bytes, out_stats (rows, tiles * 2), ms. With narrow_columns, out has the other columns, and those in E4M3 come last, (rows, narrow_columns).
py::tuple product(const std::vector<int>& numbers, int format, int epilogue, const py::array& input, const py::array& weights, const Float& scale,
                  const Float& bias, const Float& factor, const Float& stats, int width, float eps, const Half& residual, float inverse_scale, int repeats, int narrow_columns) {
  const Format operands = static_cast<Format>(format);
  const int rows = static_cast<int>(input.shape(0)), depth = static_cast<int>(input.shape(1)), columns = static_cast<int>(weights.shape(0));
  const std::optional<Variant> given = Variant::from(numbers);
  if (!given) fail("these numbers are no variant");
  const Variant variant = *given;
  const int out_tiles = ceil_div(columns, variant.tile_columns);
  auto d_input = bytes_to_device(input), d_weights = bytes_to_device(weights, round_up(columns, kColumnGroup) - columns);
  auto d_residual = to_device<__half>(residual);
  auto d_scale = to_device<float>(scale), d_bias = to_device<float>(bias), d_factor = to_device<float>(factor);
  auto d_stats = to_device<float2>(stats);
  Buffer<int> tokens(1);
  CUDA_CHECK(cudaMemcpy(tokens.data(), &rows, sizeof rows, cudaMemcpyHostToDevice));
  const bool narrow = epilogue >= static_cast<int>(Epilogue::gelu_tanh);
  const int bytes = (columns - narrow_columns) * (narrow ? 1 : 2);  // of a row
  auto out = poisoned<uint8_t>(static_cast<size_t>(rows) * bytes), narrow_out = poisoned<uint8_t>(static_cast<size_t>(rows) * std::max(narrow_columns, 1));
  auto out_stats = poisoned<float2>(static_cast<size_t>(rows) * out_tiles);
  prepare_products(operands);
  const CUtensorMap input_map = matrix_map(d_input.data(), operands, rows, depth, variant.input_rows());
  const CUtensorMap map_of_weights = weights_map(d_weights.data(), operands, columns, depth, variant);
  Product p{tokens.data(), columns, depth, out.data(), d_bias.data(), d_factor.data(), {d_stats.data(), static_cast<int>(stats.shape(1)), width},
                  eps, d_residual.data(), {out_stats.data(), out_tiles, variant.tile_columns}, d_scale.data(), inverse_scale, narrow_out.data(), narrow_columns};
  p.next = d_weights.data(), p.next_bytes = static_cast<unsigned>(d_weights.bytes());  // something to prefetch
  CUDA_CHECK(cudaDeviceSynchronize());
  const auto run = [&](cudaStream_t stream) { product_sm90(stream, variant, operands, static_cast<Epilogue>(epilogue), input_map, map_of_weights, p, rows); };
  const float ms = timed(repeats, run);
  return py::make_tuple(to_host<uint8_t>(out, rows, bytes), to_host<float>(out_stats, rows, out_tiles * 2), ms, to_host<uint8_t>(narrow_out, rows, narrow_columns));
}

// Rows before their LayerNorm to 8 bits: out (rows, hidden), stats (rows, 2), ms.
py::tuple quantise_layernorm_op(int format, const Half& x, const Float& gamma, const Float& beta, float inverse_scale, float eps, int repeats) {
  const int rows = static_cast<int>(x.shape(0)), hidden = static_cast<int>(x.shape(1));
  auto dx = to_device<__half>(x);
  auto dg = to_device<float>(gamma), db = to_device<float>(beta);
  Buffer<int> tokens(1);
  CUDA_CHECK(cudaMemcpy(tokens.data(), &rows, sizeof rows, cudaMemcpyHostToDevice));
  auto out = poisoned<uint8_t>(static_cast<size_t>(rows) * hidden);
  auto stats = poisoned<float2>(rows);
  const auto run = [&](cudaStream_t stream) {
    quantise_layernorm(stream, static_cast<Format>(format), dx.data(), dg.data(), db.data(), inverse_scale, out.data(), {stats.data(), 1, hidden}, tokens.data(),
                       rows, hidden, eps);
  };
  const float ms = timed(repeats, run);
  return py::make_tuple(to_host<uint8_t>(out, rows, hidden), to_host<float>(stats, rows, 2), ms);
}

// qkv (tokens, 3 hidden) FP16; returns context (tokens, hidden), ms.
py::tuple attention(const Half& qkv, const Int& cu_seqlens, int heads, int max_seqlen, bool fast, int repeats) {
  const int rows = static_cast<int>(qkv.shape(0)), hidden = static_cast<int>(qkv.shape(1)) / 3;
  const AttentionShape shape{static_cast<int>(cu_seqlens.size()) - 1, max_seqlen, heads, hidden / heads};
  auto d_qkv = to_device<__half>(qkv);
  auto d_bounds = to_device<int>(cu_seqlens);
  auto out = poisoned<__half>(static_cast<size_t>(rows) * hidden);
  const AttentionMaps maps = fast ? attention_maps(d_qkv.data(), rows, shape) : AttentionMaps{};
  CUDA_CHECK(cudaDeviceSynchronize());
  const float ms = timed(repeats, [&](cudaStream_t stream) {
    if (fast) {
      attention_sm90(stream, maps, out.data(), Format::half, {}, d_bounds.data(), shape);
    } else {
      attention_plain<__half>(stream, d_qkv.data(), out.data(), d_bounds.data(), shape);
    }
  });
  return py::make_tuple(to_host<uint16_t>(out, rows, hidden), ms);
}

// query_key (tokens, 2 hidden) in E4M3, value (tokens, hidden) FP16; returns context (tokens, hidden) in 8 bits, ms.
py::tuple attention_8bit(int format, const py::array& query_key, const Half& value, const Int& cu_seqlens, int heads, int max_seqlen, float score_scale,
                         float inverse_scale, int repeats) {
  const Format stored = static_cast<Format>(format);
  const int rows = static_cast<int>(value.shape(0)), hidden = static_cast<int>(value.shape(1));
  const AttentionShape shape{static_cast<int>(cu_seqlens.size()) - 1, max_seqlen, heads, hidden / heads};
  auto d_query_key = bytes_to_device(query_key);
  auto d_value = to_device<__half>(value);
  auto d_bounds = to_device<int>(cu_seqlens);
  auto out = poisoned<uint8_t>(static_cast<size_t>(rows) * hidden);
  const AttentionMaps maps = attention_maps(d_query_key.data(), d_value.data(), rows, shape);
  CUDA_CHECK(cudaDeviceSynchronize());
  const float ms = timed(repeats, [&](cudaStream_t stream) {
    attention_sm90(stream, maps, out.data(), stored, {score_scale, inverse_scale}, d_bounds.data(), shape);
  });
  return py::make_tuple(to_host<uint8_t>(out, rows, hidden), ms);
}

py::array_t<float> attention_f32(const Float& qkv, const Int& cu_seqlens, int heads, int max_seqlen) {
  const int rows = static_cast<int>(qkv.shape(0)), hidden = static_cast<int>(qkv.shape(1)) / 3;
  auto d_qkv = to_device<float>(qkv);
  auto d_bounds = to_device<int>(cu_seqlens);
  auto out = poisoned<float>(static_cast<size_t>(rows) * hidden);
  attention_plain<float>(nullptr, d_qkv.data(), out.data(), d_bounds.data(), {static_cast<int>(cu_seqlens.size()) - 1, max_seqlen, heads, hidden / heads});
  return to_host<float>(out, rows, hidden);
}

py::array_t<uint16_t> add_layernorm_f16(const Half& x, const Float& bias, const Half& residual, const Float& gamma, const Float& beta, float eps) {
  const int rows = static_cast<int>(x.shape(0)), hidden = static_cast<int>(x.shape(1));
  auto dx = to_device<__half>(x), dr = to_device<__half>(residual);
  auto db = to_device<float>(bias), dg = to_device<float>(gamma), de = to_device<float>(beta);
  Buffer<int> tokens(1);
  CUDA_CHECK(cudaMemcpy(tokens.data(), &rows, sizeof rows, cudaMemcpyHostToDevice));
  auto out = poisoned<__half>(static_cast<size_t>(rows) * hidden);
  add_layernorm<__half>(nullptr, dx.data(), db.data(), dr.data(), dg.data(), de.data(), out.data(), tokens.data(), rows, hidden, eps);
  return to_host<uint16_t>(out, rows, hidden);
}

// Embedding sum and its statistics; triples (tokens, 3).
py::tuple embed_sum_f16(const Int& triples, const Half& word, const Half& position, const Half& type) {
  const int rows = static_cast<int>(triples.shape(0)), hidden = static_cast<int>(word.shape(1));
  Config config;
  config.hidden_size = hidden;
  config.vocab_size = static_cast<int>(word.shape(0));
  config.max_position_embeddings = static_cast<int>(position.shape(0));
  config.type_vocab_size = static_cast<int>(type.shape(0));
  auto d_triples = to_device<int>(triples);
  auto d_word = to_device<__half>(word), d_position = to_device<__half>(position), d_type = to_device<__half>(type);
  Buffer<int> tokens(1);
  CUDA_CHECK(cudaMemcpy(tokens.data(), &rows, sizeof rows, cudaMemcpyHostToDevice));
  auto out = poisoned<__half>(static_cast<size_t>(rows) * hidden);
  auto stats = poisoned<float2>(rows);
  embed_sum(nullptr, config, {tokens.data(), nullptr, d_triples.data()}, {d_word.data(), d_position.data(), d_type.data(), nullptr, nullptr}, out.data(),
            {stats.data(), 1, hidden}, rows);
  return py::make_tuple(to_host<uint16_t>(out, rows, hidden), to_host<float>(stats, rows, 2));
}

// Logits of rows stored before their LayerNorm; `stats` may be empty.
py::array_t<float> head_of_sum_f16(const Half& x, const Float& stats, const Float& gamma, const Float& beta, float eps, const Float& kernel, const Float& bias) {
  const int rows = static_cast<int>(x.shape(0)), hidden = static_cast<int>(x.shape(1));
  auto dx = to_device<__half>(x);
  auto ds = to_device<float2>(stats);
  auto dg = to_device<float>(gamma), de = to_device<float>(beta), dk = to_device<float>(kernel), db = to_device<float>(bias);
  Buffer<int> tokens(1);
  CUDA_CHECK(cudaMemcpy(tokens.data(), &rows, sizeof rows, cudaMemcpyHostToDevice));
  auto logits = poisoned<float>(2ull * rows);
  head_of_sum(nullptr, dx.data(), {ds.data(), 1, hidden}, dg.data(), de.data(), eps, dk.data(), db.data(), logits.data(), tokens.data(), rows, hidden);
  return to_host<float>(logits, rows, 2);
}

// One pass of an 8-bit engine: logits (tokens, 2), and by (layer, product) what each product read, uint8 (tokens, columns), and the
// residual that it added, uint16 (tokens, hidden) or None; by (layer, 4) queries and keys, and values.
py::tuple trace(const std::string& path, const Int& ids, const Int& segments, const Int& cu_seqlens) {
  const EngineFile file(path);
  const int size = static_cast<int>(cu_seqlens.size()) - 1, tokens = static_cast<int>(ids.size());
  int longest = 0;
  std::vector<int> triples;
  for (int i = 0; i < size; ++i) {
    longest = std::max(longest, cu_seqlens.at(i + 1) - cu_seqlens.at(i));
    for (int j = cu_seqlens.at(i); j < cu_seqlens.at(i + 1); ++j) triples.insert(triples.end(), {ids.at(j), segments.at(j), j - cu_seqlens.at(i)});
  }
  py::dict seen;
  const auto encoder = encoder_8bit_sm90(file, {size, longest}, [&](int layer, int product, const uint8_t* input, int columns, const __half* residual) {
    CUDA_CHECK(cudaDeviceSynchronize());
    py::array_t<uint8_t> copy({tokens, columns});
    CUDA_CHECK(cudaMemcpy(copy.mutable_data(), input, copy.nbytes(), cudaMemcpyDeviceToHost));
    py::object added = py::none();
    if (residual != nullptr) {
      py::array_t<uint16_t> halves({tokens, file.info().config.hidden_size});
      CUDA_CHECK(cudaMemcpy(halves.mutable_data(), residual, halves.nbytes(), cudaMemcpyDeviceToHost));
      added = halves;
    }
    seen[py::make_tuple(layer, product)] = py::make_tuple(copy, added);
  });
  auto d_bounds = to_device<int>(cu_seqlens);
  Buffer<int> d_tokens(1), d_triples(triples.size());
  CUDA_CHECK(cudaMemcpy(d_tokens.data(), &tokens, sizeof tokens, cudaMemcpyHostToDevice));
  CUDA_CHECK(cudaMemcpy(d_triples.data(), triples.data(), d_triples.bytes(), cudaMemcpyHostToDevice));
  auto logits = poisoned<float>(2ull * tokens);
  encoder->forward(nullptr, {d_tokens.data(), d_bounds.data(), d_triples.data()}, {size, longest, tokens}, logits.data());
  return py::make_tuple(to_host<float>(logits, tokens, 2), seen);
}

// A search of a made-up model's products, FP16. `fails` gets the numbers of the four in force and says whether their pass fails. Returns
// the error, whether the search knows its result, and that in JSON.
py::tuple search(int rows, int hidden, bool library, const std::function<bool(const std::vector<std::vector<int>>&)>& fails) {
  Config config;
  config.hidden_size = hidden, config.intermediate_size = 4 * hidden;
  prepare_products(Format::half);
  ProductSearch found(config, Format::half);
  const TimedStream stream;
  const Buffer<float> from(256, true);
  const Buffer<__half> to(256);
  wait_for_load();
  std::string error;
  try {
    found.run(
        stream, rows,
        [&] {
          std::vector<std::vector<int>> numbers;
          for (const Variant& v : found.at(rows)) numbers.push_back(v.numbers());
          if (fails(numbers)) fail("this pass fails");
          narrow(stream, from.data(), to.data(), 256);
        },
        library);
  } catch (const Error& thrown) {
    error = thrown.what();
  }
  return py::make_tuple(error, found.knows(rows), found.json());
}

}  // namespace

PYBIND11_MODULE(infer_c_ops, m) {
  m.def("search", &search);
  m.def("product", &product, py::arg("numbers"), py::arg("format"), py::arg("epilogue"), py::arg("input"), py::arg("weights"), py::arg("scale"), py::arg("bias"),
        py::arg("factor"), py::arg("stats"), py::arg("width"), py::arg("eps"), py::arg("residual"), py::arg("inverse_scale"), py::arg("repeats"),
        py::arg("narrow_columns") = 0);
  m.def("quantise_layernorm", &quantise_layernorm_op);
  m.def("trace", &trace);
  m.def("attention", &attention);
  m.def("attention_8bit", &attention_8bit);
  m.def("attention_f32", &attention_f32);
  m.def("add_layernorm", &add_layernorm_f16);
  m.def("embed_sum", &embed_sum_f16);
  m.def("head_of_sum", &head_of_sum_f16);
}
