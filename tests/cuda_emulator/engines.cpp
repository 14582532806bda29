// SPDX-License-Identifier: Apache-2.0
// The copy engine (tensor maps, boxes, swizzles) and the tensor cores (wgmma).
#include <algorithm>
#include <cmath>
#include <cstring>

#include <cuda_fp16.h>

#include "machine.h"
#include "tensor_map.h"

namespace emulator {

namespace {

// Where a byte of a swizzled tile lies: within `width` bytes of a row, 16-byte pieces are exchanged by the row's number.
uint32_t swizzle(uint32_t address, unsigned width) {
  switch (width) {
    case 128: return address ^ (address >> 7 & 7) << 4;
    case 64: return address ^ (address >> 7 & 3) << 4;
    case 32: return address ^ (address >> 7 & 1) << 4;
    default: return address;
  }
}

}  // namespace

void load_box(uint32_t to, const void* map, const std::vector<int>& coordinates, uint32_t barrier, int mask) {
  const TensorMap m = *static_cast<const TensorMap*>(map);
  if (m.magic != TensorMap::kMagic || m.rank != coordinates.size()) fault("not a tensor map of " + std::to_string(coordinates.size()) + " dimensions");
  const uint32_t offset = to & 0xFFFFFF, barrier_offset = barrier & 0xFFFFFF;
  size_t bytes = m.element;
  for (unsigned i = 0; i < m.rank; ++i) bytes *= m.box[i];
  at(to, bytes);  // checks the range
  if (offset % 128) fault("a box goes to an address that is no multiple of 128");
  std::vector<unsigned> ranks;
  for (unsigned rank = 0; rank < machine->blocks.size(); ++rank) {
    if (mask < 0 ? rank == thread().block->rank : mask >> rank & 1) ranks.push_back(rank);
  }
  if (mask >= 0 && (mask == 0 || mask >> machine->blocks.size())) fault("a multicast to blocks that the cluster does not have");
  Cluster* cluster = machine;
  for (const unsigned rank : ranks) {
    cluster->later([=] {
      Block& block = cluster->blocks[rank];
      const size_t row = static_cast<size_t>(m.box[0]) * m.element;
      for (size_t i = 0; i < bytes / row; ++i) {  // rows of the first dimension
        const char* from = static_cast<const char*>(m.address);
        bool inside = true;
        size_t rest = i;
        for (unsigned d = 1; d < m.rank; ++d) {
          const int64_t at = coordinates[d] + static_cast<int64_t>(rest % m.box[d]);
          rest /= m.box[d];
          inside = inside && at >= 0 && at < static_cast<int64_t>(m.extents[d]);
          from += at * static_cast<int64_t>(m.pitches[d]);
        }
        for (size_t k = 0; k < row; k += m.element) {
          const int64_t column = coordinates[0] + static_cast<int64_t>(k / m.element);
          char* where = block.shared + swizzle(static_cast<uint32_t>(offset + i * row + k), m.swizzle);
          if (inside && column >= 0 && column < static_cast<int64_t>(m.extents[0])) {
            std::memcpy(where, from + column * m.element, m.element);
          } else {
            std::memset(where, 0, m.element);
          }
        }
      }
      barrier_complete(block, barrier_offset, static_cast<unsigned>(bytes));
    });
  }
}

void load_bytes(uint32_t to, const void* from, unsigned bytes, uint32_t barrier) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16) fault("a bulk copy of " + std::to_string(bytes) + " bytes, or its source, is no multiple of 16");
  char* where = at(to, 16);
  at(to + bytes - 16, 16);
  Block* block = thread().block;
  machine->later([=] {
    std::memcpy(where, from, bytes);
    barrier_complete(*block, barrier, bytes);
  });
}

void send(uint32_t to, const std::vector<uint32_t>& values, uint32_t barrier) {
  Block *block = nullptr, *counting = nullptr;
  const unsigned bytes = static_cast<unsigned>(values.size() * 4);
  char* where = at(to, bytes, &block);
  at(barrier, 8, &counting);
  if (block != counting) fault("bytes for one block are counted in another");
  machine->later([=] {
    std::memcpy(where, values.data(), bytes);
    barrier_complete(*block, barrier & 0xFFFFFF, bytes);
  });
}

namespace {

// An operand in shared memory, by its descriptor: rows of `width` bytes in groups of 8, swizzled over the width.
struct Operand {
  const char* shared;
  uint32_t start, stride;
  unsigned width;

  Operand(const Block& block, uint64_t descriptor) : shared(block.shared), start((descriptor & 0x3FFF) << 4), stride((descriptor >> 32 & 0x3FFF) << 4) {
    constexpr unsigned kWidths[] = {0, 128, 64, 32};
    width = kWidths[descriptor >> 62];
    if (width == 0 || stride != 8 * width) throw Fault("a wgmma descriptor that the emulator does not know");
    if (descriptor >> 49 & 7) throw Fault("a wgmma descriptor with a base offset");
  }
  const char* byte(unsigned row, unsigned column) const { return shared + swizzle(start + row / 8 * stride + row % 8 * width + column, width); }
};

float half_value(const char* p) {
  __half h;
  std::memcpy(&h, p, 2);
  return __half2float(h);
}

float e4m3_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 127) == 127) return NAN;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(1 + mantissa / 8.f, exponent - 7);
  return code & 128 ? -magnitude : magnitude;
}

struct Tables {
  float half[65536], e4m3[256];
  Tables() {
    for (unsigned i = 0; i < 65536; ++i) {
      const uint16_t code = static_cast<uint16_t>(i);
      half[i] = half_value(reinterpret_cast<const char*>(&code));
    }
    for (unsigned i = 0; i < 256; ++i) e4m3[i] = e4m3_value(static_cast<uint8_t>(i));
  }
};

float value(const char* p, Multiply::Type type) {
  static const Tables tables;
  if (type == Multiply::Type::half) {
    uint16_t code;
    std::memcpy(&code, p, 2);
    return tables.half[code];
  }
  return type == Multiply::Type::fp8 ? tables.e4m3[static_cast<uint8_t>(*p)] : static_cast<float>(static_cast<int8_t>(*p));
}

// Adds products of E4M3 up as Hopper does: what lies more than 13 bits below the largest term, the sum so far among them, is cut off.
void add_e4m3(std::vector<float>& sums, const float* row, const std::vector<float>& b, unsigned depth) {
  const size_t columns = sums.size();
  const auto cut = [](float x) { return x == x ? static_cast<float>(static_cast<int>(x)) : x; };  // std::trunc is a call
  std::vector<float> steps(columns);
  for (size_t n = 0; n < columns; ++n) steps[n] = std::fabs(sums[n]);
  for (unsigned k = 0; k < depth; ++k) {
    for (size_t n = 0; n < columns; ++n) steps[n] = std::max(steps[n], std::fabs(row[k] * b[k * columns + n]));
  }
  for (float& s : steps) s = s > 0 ? std::ldexp(1.f, 13 - std::ilogb(s)) : 1.f;
  for (size_t n = 0; n < columns; ++n) sums[n] = cut(sums[n] * steps[n]);
  for (unsigned k = 0; k < depth; ++k) {
    for (size_t n = 0; n < columns; ++n) sums[n] += cut(row[k] * b[k * columns + n] * steps[n]);
  }
  for (size_t n = 0; n < columns; ++n) sums[n] /= steps[n];
}

void execute(Block& block, Multiply& m) {
  const unsigned size = m.type == Multiply::Type::half ? 2 : 1, depth = 32 / size, columns = static_cast<unsigned>(m.columns);
  std::vector<float> a(64 * depth), b(depth * columns);  // (rows, depth), (depth, columns)
  if (m.from_registers) {
    for (unsigned t = 0; t < kWarpgroup; ++t) {
      for (unsigned i = 0; i < 8; ++i) {  // two values a register; rows + 8 in the odd ones, columns + 8 in the upper two
        const unsigned row = t / 32 * 16 + t % 32 / 4 + (i / 2 & 1) * 8, column = t % 4 * 2 + i % 2 + i / 4 * 8;
        a[row * depth + column] = half_value(reinterpret_cast<const char*>(&m.registers[t]) + 2 * i);
      }
    }
  } else {
    const Operand from(block, m.a);
    for (unsigned r = 0; r < 64; ++r) {
      for (unsigned k = 0; k < depth; ++k) a[r * depth + k] = value(from.byte(r, k * size), m.type);
    }
  }
  const Operand from(block, m.b);
  if (m.transposed && columns * size > from.width) throw Fault("a transposed operand wider than its swizzle");
  for (unsigned n = 0; n < columns; ++n) {
    for (unsigned k = 0; k < depth; ++k) b[k * columns + n] = value(m.transposed ? from.byte(k, n * size) : from.byte(n, k * size), m.type);
  }
  std::vector<float> sums(columns);
  for (unsigned r = 0; r < 64; ++r) {
    // The thread and its register that have column n of the row.
    const auto place = [&](unsigned n) { return std::pair{r / 16 * 32 + r % 8 * 4 + n % 8 / 2, n / 8 * 4 + (r % 16 >= 8) * 2 + n % 2}; };
    if (m.type == Multiply::Type::fp8) {
      const auto at = [&](unsigned n) -> float& { return static_cast<float*>(m.sums[place(n).first])[place(n).second]; };
      for (unsigned n = 0; n < columns; ++n) sums[n] = m.accumulate ? at(n) : 0.f;
      add_e4m3(sums, &a[r * depth], b, depth);
      for (unsigned n = 0; n < columns; ++n) at(n) = sums[n];
      continue;
    }
    std::fill(sums.begin(), sums.end(), 0.f);
    for (unsigned k = 0; k < depth; ++k) {
      const float factor = a[r * depth + k];
      for (unsigned n = 0; n < columns; ++n) sums[n] += factor * b[k * columns + n];
    }
    for (unsigned n = 0; n < columns; ++n) {
      const auto [t, i] = place(n);
      if (m.type == Multiply::Type::int8) {
        int& d = static_cast<int*>(m.sums[t])[i];
        d = (m.accumulate ? d : 0) + static_cast<int>(sums[n]);  // 32 products of 8 bits are exact in a float
      } else {
        float& d = static_cast<float*>(m.sums[t])[i];
        d = (m.accumulate ? d : 0.f) + sums[n];
      }
    }
  }
  m.done = true;
}

Warpgroup& group_of(const Thread& t) { return t.block->warpgroups[t.number / kWarpgroup]; }

// Execute in order what is complete up to group `last`; return whether that is all of it.
bool execute_until(Block& block, Warpgroup& group, int last) {
  while (!group.queue.empty() && group.queue.front().group <= last) {
    if (group.queue.front().arrived < kWarpgroup) return false;
    execute(block, group.queue.front());
    group.queue.pop_front();
    ++group.first;
  }
  return true;
}

}  // namespace

void multiply(const Multiply& of_thread, void* sums, const std::array<uint32_t, 4>& registers) {
  Thread& me = thread();
  Warpgroup& group = group_of(me);
  const size_t number = me.multiplied++ - group.first;
  if (number == group.queue.size()) {
    group.queue.push_back(of_thread);
    group.queue.back().group = me.groups;
  }
  Multiply& m = group.queue.at(number);
  if (m.columns != of_thread.columns || m.a != of_thread.a || m.b != of_thread.b || m.group != me.groups || m.accumulate != of_thread.accumulate) {
    fault("the threads of a warpgroup disagree on a wgmma");
  }
  const unsigned place = me.number % kWarpgroup;
  m.sums[place] = sums;
  m.registers[place] = registers;
  if (++m.arrived < kWarpgroup) return;
  machine->wake(&group);
  if (machine->chance(50)) execute_until(*me.block, group, m.group);
}

void multiply_commit() { ++thread().groups; }

void multiply_wait(int pending) {
  Thread& me = thread();
  Warpgroup& group = group_of(me);
  const int last = me.groups - pending - 1;
  // A thread that is ahead must find what the others have not issued yet too; what it has issued itself stands in the queue.
  while (!execute_until(*me.block, group, last)) machine->wait(&group, "a product of its warpgroup");
}

}  // namespace emulator
