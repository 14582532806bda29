// SPDX-License-Identifier: Apache-2.0
// The C++ benchmark: random batches through a loaded engine, device time per pass. Options and facts printed as the old
// build/perf had them, plus TFLOP/s, the share of the physical floor, --json and --csv.
#include <getopt.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>

#include "bert_infer.h"
#include "common.h"
#include "json.h"

namespace {

struct Options {
  std::string engine, json, csv, algorithms;
  std::vector<int> batches;
  int length = 128, iterations = 200, warm_up = 10, seed = 12345;
  bool graph = false, plain = false;
};

struct Result {
  int batch;
  double total, average, p95, p99, throughput, tflops, floor_share;
};

constexpr char kUsage[] =
    "usage: perf -e ENGINE [-b N]... [-s N] [-i N] [-w N] [-r N] [-g] [--json FILE] [--csv FILE]\n"
    "  -e, --engine FILE         engine of the cuda backend, or a TensorRT plan\n"
    "  -b, --batch_size N        sequences in a batch; may be repeated (default 1)\n"
    "  -s, --sequence_length N   tokens in a sequence (default 128)\n"
    "  -i, --iterations N        timed runs (default 200)\n"
    "  -w, --warm_up_runs N      untimed runs before them (default 10)\n"
    "  -r, --random_seed N       seed of the made-up input (default 12345)\n"
    "  -g, --enable_graph        replay a CUDA graph\n"
    "      --plain               the code path of other GPUs, also on Hopper\n"
    "      --algorithms JSON     use these instead of searching; as printed by an earlier run\n"
    "      --json FILE           also write the results as JSON\n"
    "      --csv FILE            also append the results as CSV\n"
    "  -h, --help                this text\n";

int number(const char* argument, const char* option, int least) {
  constexpr long kMost = 1'000'000'000;
  char* end = nullptr;
  const long value = std::strtol(argument, &end, 10);
  if (*argument == '\0' || *end != '\0' || value < least || value > kMost) {
    bert::refuse(option, " ", argument, " is no whole number from ", least, " to ", kMost);
  }
  return static_cast<int>(value);
}

std::string algorithms(const char* argument) {
  try {
    bert::Json::parse(argument).members();
  } catch (const bert::Error& error) {
    bert::refuse("--algorithms is no object in JSON (", error.what(), "); give what an earlier run printed");
  }
  return argument;
}

Options parse(int argc, char** argv) {
  enum { kJson = 1000, kCsv, kPlain, kAlgorithms };
  const option table[] = {{"help", 0, nullptr, 'h'},           {"engine", 1, nullptr, 'e'},      {"batch_size", 1, nullptr, 'b'},
                          {"sequence_length", 1, nullptr, 's'}, {"iterations", 1, nullptr, 'i'},  {"warm_up_runs", 1, nullptr, 'w'},
                          {"random_seed", 1, nullptr, 'r'},     {"ramdon_seed", 1, nullptr, 'r'}, {"enable_graph", 0, nullptr, 'g'},
                          {"json", 1, nullptr, kJson},          {"csv", 1, nullptr, kCsv},        {"plain", 0, nullptr, kPlain},
                          {"algorithms", 1, nullptr, kAlgorithms},
                          {nullptr, 0, nullptr, 0}};
  Options o;
  for (int c; (c = getopt_long(argc, argv, "he:b:s:i:w:r:g", table, nullptr)) != -1;) {
    switch (c) {
      case 'h': std::fputs(kUsage, stdout); std::exit(0);
      case 'e': o.engine = optarg; break;
      case 'b': o.batches.push_back(number(optarg, "--batch_size", 1)); break;
      case 's': o.length = number(optarg, "--sequence_length", 1); break;
      case 'i': o.iterations = number(optarg, "--iterations", 1); break;
      case 'w': o.warm_up = number(optarg, "--warm_up_runs", 0); break;
      case 'r': o.seed = number(optarg, "--random_seed", 0); break;
      case 'g': o.graph = true; break;
      case kJson: o.json = optarg; break;
      case kCsv: o.csv = optarg; break;
      case kPlain: o.plain = true; break;
      case kAlgorithms: o.algorithms = algorithms(optarg); break;
      default: bert::refuse("see --help for the options");  // getopt has named the wrong one
    }
  }
  if (optind < argc) bert::refuse("unexpected argument ", argv[optind]);
  if (o.engine.empty()) bert::refuse("no engine given; use -e");
  if (o.batches.empty()) o.batches = {1};
  return o;
}

void say(const std::string& line) { std::printf("[DemoBERT][I] %s\n", line.c_str()); }

// Multiply-adds of the products and of attention, counted as two operations each (shared with the floor below).
double operations(const bert::Config& c, double tokens, double length) {
  const double hidden = c.hidden_size, inner = c.intermediate_size;
  return c.num_hidden_layers * tokens * (2 * (4 * hidden * hidden + 2 * hidden * inner) + 4 * length * hidden);
}

// The least time a pass can take on an H200, in ms: the encoder's weights over 4.3 TB/s, or the operations over 768 TFLOP/s
// FP16 (1,516 in 8 bits); all measured there with large copies and 8192^3 products on random data.
double floor_ms(const bert::Config& c, double tokens, double length, const std::string& precision) {
  const bool eight_bit = precision == "int8" || precision == "fp8";
  const double weight_width = eight_bit ? 1 : precision == "fp32" ? 4 : 2;
  const double hidden = c.hidden_size, inner = c.intermediate_size;
  const double weights = c.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner) * weight_width;
  return 1e3 * std::max(weights / 4.3e12, operations(c, tokens, length) / (eight_bit ? 1516e12 : 768e12));
}

Result measure(bert::Runner& runner, const Options& o, int batch) {
  const bert::Config& config = runner.info().config;
  std::default_random_engine random(o.seed);
  std::vector<int> ids(static_cast<size_t>(batch) * o.length), segments(ids.size()), bounds;
  const int vocabulary = std::min(config.vocab_size, 30522);  // a plan without metadata does not know its own
  for (int& id : ids) id = static_cast<int>(random() % vocabulary);
  for (int& segment : segments) segment = static_cast<int>(random() % std::min(2, config.type_vocab_size));
  for (int i = 0; i <= batch; ++i) bounds.push_back(i * o.length);
  runner.stage({ids.data(), segments.data(), bounds.data(), batch});
  for (int i = 0; i < o.warm_up; ++i) runner.time_staged();
  std::vector<double> ms(o.iterations);
  Result r{};
  for (double& sample : ms) r.total += sample = runner.time_staged();
  std::sort(ms.begin(), ms.end());
  const auto percentile = [&](double p) { return ms[std::min(ms.size() - 1, static_cast<size_t>(ms.size() * p))]; };
  r.batch = batch;
  r.average = r.total / o.iterations;
  r.p95 = percentile(0.95);
  r.p99 = percentile(0.99);
  r.throughput = batch * 1000.0 / r.average;
  r.tflops = operations(config, static_cast<double>(batch) * o.length, o.length) / (r.average * 1e9);
  r.floor_share = floor_ms(config, static_cast<double>(batch) * o.length, o.length, runner.info().precision) / r.average;
  return r;
}

void write_json(const Options& o, const bert::Facts& f, const std::vector<Result>& results) {
  std::ofstream out(o.json);
  out << "{\"device\": \"" << f.device << "\", \"path\": \"" << f.path << "\", \"driver\": " << f.driver << ", \"runtime\": " << f.runtime
      << ", \"graph\": " << (o.graph ? "true" : "false") << ", \"sequence_length\": " << o.length << ", \"iterations\": " << o.iterations
      << ", \"weight_bytes\": " << f.weight_bytes << ", \"activation_bytes\": " << f.activation_bytes << ", \"results\": [";
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    out << (i ? ", " : "") << "{\"batch_size\": " << r.batch << ", \"average_ms\": " << r.average << ", \"p95_ms\": " << r.p95 << ", \"p99_ms\": " << r.p99
        << ", \"sequences_per_second\": " << r.throughput << ", \"tflops\": " << r.tflops << ", \"floor_share\": " << r.floor_share << "}";
  }
  out << "]}\n";
  if (!out.flush()) bert::fail(o.json, " cannot be written; make room there, or choose another place for it");
}

// A field of CSV that may have commas.
std::string quoted(const std::string& field) {
  if (field.find_first_of(",\"\n") == std::string::npos) return field;
  std::string out = "\"";
  for (const char c : field) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

void write_csv(const Options& o, const std::vector<Result>& results) {
  const bool fresh = std::ifstream(o.csv).peek() == std::ifstream::traits_type::eof();  // missing, or empty
  std::ofstream out(o.csv, std::ios::app);
  if (fresh) out << "engine,seq_len,batch,graph,avg_ms,p95_ms,p99_ms,sequences_per_second,tflops,floor_share\n";
  for (const Result& r : results) {
    out << quoted(o.engine) << ',' << o.length << ',' << r.batch << ',' << o.graph << ',' << r.average << ',' << r.p95 << ',' << r.p99 << ',' << r.throughput << ','
        << r.tflops << ',' << r.floor_share << '\n';
  }
  if (!out.flush()) bert::fail(o.csv, " cannot be written; make room there, or choose another place for it");
}

void run(const Options& o) {
  const int largest = *std::max_element(o.batches.begin(), o.batches.end());
  say(std::string("CUDA graph is ") + (o.graph ? "on" : "off"));
  say("Loading BERT inference engine " + o.engine);
  const auto runner = bert::load_runner(o.engine, {largest, o.length, o.graph, o.plain, o.algorithms});
  const bert::Facts f = runner->facts();
  say(bert::text(f.device, ", compute capability ", f.compute_capability / 10, ".", f.compute_capability % 10, ", ", f.multiprocessors,
                 " multiprocessors, ", f.clock_mhz, " MHz, driver ", f.driver, ", CUDA runtime ", f.runtime));
  say("Path: " + f.path + "; variable length is " + (runner->info().layout == "packed" ? "on" : "off"));
  say(bert::text("Memory: ", f.weight_bytes >> 20, " MiB weights, ", f.activation_bytes >> 20, " MiB for batch ", largest, " of length ", o.length));
  say(bert::text("Warm-up runs ", o.warm_up, ", timed runs ", o.iterations));
  std::vector<Result> results;
  for (const int batch : o.batches) results.push_back(measure(*runner, o, batch));
  say("Algorithms: " + runner->choices());
  for (const Result& r : results) {
    say(bert::text("Running ", o.iterations, " iterations with Batch Size ", r.batch));
    say(bert::text("\tTotal Time: ", r.total, " ms"));
    say(bert::text("\tAverage Time: ", r.average, " ms"));
    say(bert::text("\t95th Percentile Time: ", r.p95, " ms"));
    say(bert::text("\t99th Percentile Time: ", r.p99, " ms"));
    say(bert::text("\tThroughput: ", static_cast<long long>(r.throughput), " sentences/s"));
    say(bert::text("\tRate: ", r.tflops, " TFLOP/s, ", std::lround(100 * r.floor_share), "% of an H200's floor"));
  }
  if (!o.json.empty()) write_json(o, f, results);
  if (!o.csv.empty()) write_csv(o, results);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  try {
    options = parse(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "perf: %s\n%s", error.what(), kUsage);
    return 1;
  }
  try {
    run(options);
  } catch (const std::exception& error) {
    std::printf("[DemoBERT][E] %s\n", error.what());
    return 255;
  }
  return 0;
}
