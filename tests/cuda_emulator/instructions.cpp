// SPDX-License-Identifier: Apache-2.0
#include "instructions.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <sstream>

#include <cuda_fp16.h>

#include "machine.h"

namespace emulator {

namespace {

bool starts(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }
bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

float as_float(uint64_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// The operands of one run and the registers that the statement declares.
struct State {
  std::vector<Register>& operands;
  std::map<std::string, uint64_t> own;

  uint64_t get(const std::string& name) const {
    if (name[0] == '%') return operands.at(std::strtoul(name.c_str() + 1, nullptr, 10)).value;
    if (const auto found = own.find(name); found != own.end()) return found->second;
    char* end = nullptr;
    const long number = std::strtol(name.c_str(), &end, 10);
    if (*end) fault("no register " + name);
    return static_cast<uint64_t>(number);
  }
  uint32_t word(const std::string& name) const { return static_cast<uint32_t>(get(name)); }
  void set(const std::string& name, uint64_t value) {
    if (name[0] != '%') {
      own[name] = value;
      return;
    }
    Register& r = operands.at(std::strtoul(name.c_str() + 1, nullptr, 10));
    if (!r.address) fault("an instruction writes its input " + name);
    std::memcpy(r.address, &value, r.bytes);
  }
  void set(const std::string& name, float value) {
    set(name, uint64_t{bits_of(value)});
  }
};

// wgmma.mma_async...m64nNkK.<sums>.<a>.<b> {sums}, a or {a}, b, p, scales[, transpositions]
void run_multiply(const std::string& code, const std::vector<std::string>& x, State& s) {
  Multiply m;
  const size_t n = code.find("m64n");
  m.columns = std::atoi(code.c_str() + n + 4);
  m.type = has(code, "e4m3") ? Multiply::Type::fp8 : has(code, ".s8") ? Multiply::Type::int8 : Multiply::Type::half;
  const size_t sums = static_cast<size_t>(m.columns) / 2;
  // Behind the sums: a, b, p and two scales; transpositions of both in FP16, of b alone where a comes in registers; INT8 has no scales.
  const size_t from_memory = m.type == Multiply::Type::int8 ? 3 : m.type == Multiply::Type::fp8 ? 5 : 7;
  m.from_registers = x.size() == sums + 9 && m.type == Multiply::Type::half;
  if (!m.from_registers && x.size() != sums + from_memory) fault("a wgmma with " + std::to_string(x.size()) + " operands");
  size_t at = sums;
  std::array<uint32_t, 4> registers{};
  if (m.from_registers) {
    for (uint32_t& r : registers) r = s.word(x[at++]);
  } else {
    m.a = s.get(x[at++]);
  }
  m.b = s.get(x[at++]);
  m.accumulate = s.get(x[at++]) != 0;
  m.transposed = m.type == Multiply::Type::half && x.back() == "1";
  if (m.type != Multiply::Type::int8 && (x[at] != "1" || x[at + 1] != "1")) fault("a wgmma with a scale other than 1");
  if (m.type == Multiply::Type::half && !m.from_registers && (x[at + 2] != "0" || m.transposed)) fault("a transposition that the emulator does not know");
  char* first = static_cast<char*>(s.operands.at(0).address);
  for (size_t i = 0; i < sums; ++i) {
    if (x[i] != "%" + std::to_string(i) || s.operands.at(i).address != first + 4 * i) fault("the sums of a wgmma are no array");
  }
  multiply(m, first, registers);
}

// As far off as the PTX manual allows for tanh.approx, 2^-11 of it, either way: which way the bits of x tell. Where it is nearly 1 it is 1.
float approximate_tanh(float x) {
  if (std::fabs(x) > 5) return std::copysign(1.f, x);
  return std::tanh(x) * (1 + (bits_of(x) * 2654435761u >> 31 ? 0x1p-11f : -0x1p-11f));
}

void run_step(const std::string& code, const std::vector<std::string>& x, State& s) {
  if (starts(code, "wgmma.mma_async")) return run_multiply(code, x, s);
  if (starts(code, "wgmma.fence")) return;
  if (starts(code, "wgmma.commit_group")) return multiply_commit();
  if (starts(code, "wgmma.wait_group")) return multiply_wait(static_cast<int>(s.get(x[0])));
  if (starts(code, "setp.ne.b32")) return s.set(x[0], uint64_t{s.word(x[1]) != s.word(x[2])});
  if (starts(code, "ex2.approx")) return s.set(x[0], std::exp2(as_float(s.get(x[1]))));
  if (code == "tanh.approx.f32") return s.set(x[0], approximate_tanh(as_float(s.get(x[1]))));
  if (code == "tanh.approx.f16x2") {
    __half2 pair;
    const uint32_t bits = s.word(x[1]);
    std::memcpy(static_cast<void*>(&pair), &bits, 4);
    const float2 f = __half22float2(pair);
    return s.set(x[0], in(__floats2half2_rn(approximate_tanh(f.x), approximate_tanh(f.y))).value);
  }
  if (starts(code, "mbarrier.init")) return barrier_init(s.word(x[0]), s.word(x[1]));
  if (starts(code, "mbarrier.arrive.expect_tx")) return barrier_arrive(s.word(x[1]), s.word(x[2]));
  if (starts(code, "mbarrier.arrive")) return barrier_arrive(s.word(x[1]), 0);
  if (starts(code, "mbarrier.try_wait.parity")) {  // and the loop around it
    barrier_wait(s.word(x[1]), s.word(x[2]));
    return s.set(x[0], uint64_t{1});
  }
  if (starts(code, "mapa")) return s.set(x[0], uint64_t{in_block(s.word(x[1]), s.word(x[2]))});
  if (starts(code, "mov.u32") && x[1] == "%%cluster_ctarank") return s.set(x[0], uint64_t{thread().block->rank});
  if (starts(code, "barrier.cluster.arrive")) return machine->cluster_arrive();
  if (starts(code, "barrier.cluster.wait")) return machine->cluster_wait();
  if (starts(code, "bar.sync")) return named_barrier(s.word(x[0]), s.word(x[1]), true);
  if (starts(code, "bar.arrive")) return named_barrier(s.word(x[0]), s.word(x[1]), false);
  if (starts(code, "cp.async.bulk.prefetch") || starts(code, "prefetch") || starts(code, "fence.mbarrier_init") || starts(code, "setmaxnreg") ||
      starts(code, "griddepcontrol")) {
    return;  // nothing that shows
  }
  if (starts(code, "cp.async.bulk.tensor")) {  // to, map, coordinates, barrier[, mask]
    const size_t rank = has(code, ".2d") ? 2 : 5;
    std::vector<int> coordinates;
    for (size_t i = 0; i < rank; ++i) coordinates.push_back(static_cast<int>(s.get(x[2 + i])));
    const bool multicast = has(code, "multicast");
    if (x.size() != 3 + rank + multicast) fault("a copy of a box with " + std::to_string(x.size()) + " operands");
    return load_box(s.word(x[0]), reinterpret_cast<const void*>(s.get(x[1])), coordinates, s.word(x[2 + rank]), multicast ? static_cast<int>(s.get(x.back()) & 0xFFFF) : -1);
  }
  if (starts(code, "cp.async.bulk.shared::cluster.global")) return load_bytes(s.word(x[0]), reinterpret_cast<const void*>(s.get(x[1])), s.word(x[2]), s.word(x[3]));
  if (starts(code, "st.async") || starts(code, "st.shared.v")) {
    const size_t count = has(code, ".v4") ? 4 : 2;
    std::vector<uint32_t> values;
    for (size_t i = 0; i < count; ++i) values.push_back(s.word(x[1 + i]));
    if (starts(code, "st.async")) return send(s.word(x[0]), values, s.word(x[1 + count]));
    std::memcpy(at(s.word(x[0]), 4 * count), values.data(), 4 * count);
    return;
  }
  fault("the emulator does not know " + code);
}

}  // namespace

Program::Program(const char* text) {
  std::string statement;
  std::vector<std::string> statements;
  for (const char* c = text; *c; ++c) {
    if (*c == ';') {
      statements.push_back(statement);
      statement.clear();
    } else {
      statement += *c == '\n' || *c == '\t' ? ' ' : *c;
    }
  }
  for (std::string each : statements) {
    if (const size_t label = each.find(": "); label != std::string::npos) each = each.substr(label + 2);  // "again: ..."
    for (char& c : each) {
      if (c == '[' || c == ']' || c == '{' || c == '}' || c == ',') c = ' ';  // groups do not matter, only their order
    }
    std::istringstream words(each);
    Step step;
    words >> step.code;
    for (std::string word; words >> word;) step.arguments.push_back(word);
    if (step.code.empty() || step.code == ".reg" || step.code == "bra" || step.code[0] == '@') continue;  // the one loop is try_wait's
    steps_.push_back(step);
  }
}

void Program::run(std::vector<Register> operands) const {
  State state{operands, {}};
  for (const Step& step : steps_) run_step(step.code, step.arguments, state);
}

}  // namespace emulator
