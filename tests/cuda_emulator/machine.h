// SPDX-License-Identifier: Apache-2.0
// A Hopper GPU as far as the engine's kernels can tell, on a CPU: the threads of a cluster's blocks are fibers, which take turns at
// random; what the copy engine and the tensor cores do by themselves happens at random later, as late as what is waited for allows.
// So a kernel that lacks a wait, or waits for the wrong thing, computes something wrong or comes to a standstill, which is an error.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <array>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fiber.h"

namespace emulator {

constexpr unsigned kWarp = 32, kWarpgroup = 128;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void fault(const std::string& what);  // names the thread

// One wgmma: what the threads of a warpgroup hand to the tensor cores.
struct Multiply {
  int columns = 0;
  enum class Type { half, int8, fp8 } type = Type::half;
  bool from_registers = false, transposed = false, accumulate = false;
  uint64_t a = 0, b = 0;  // descriptors
  int group = 0;
  unsigned arrived = 0;
  bool done = false;
  std::array<void*, kWarpgroup> sums{};
  std::array<std::array<uint32_t, 4>, kWarpgroup> registers{};
};

struct Block;

struct Thread {
  uint3 index{};
  Block* block = nullptr;
  unsigned number = 0;           // in its block
  unsigned collectives = 0;      // that its warp has been through with it
  size_t multiplied = 0;         // its wgmmas
  int groups = 0;                // of them that it has committed
  unsigned cluster_arrivals = 0;
  const char* reason = "";  // why it waits
  bool finished = false;
  Fiber fiber;
  unsigned lane() const { return number % kWarp; }
  unsigned warp() const { return number / kWarp; }
};

struct Warp {
  uint64_t values[2][kWarp];
  unsigned arrived = 0, rounds = 0;
};

struct Warpgroup {
  std::deque<Multiply> queue;
  size_t first = 0;  // number of the oldest in the queue
};

struct NamedBarrier {
  unsigned arrived = 0, rounds = 0, expected = 0;
};

struct Block {
  dim3 index{};
  unsigned rank = 0;
  std::vector<char> memory;  // shared memory
  char* shared = nullptr;    // its begin, aligned
  size_t used = 0;
  std::unordered_map<int, size_t> variables;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  NamedBarrier barriers[16];
  unsigned alive = 0;
};

// The blocks that run at the same time.
class Cluster {
 public:
  Cluster(const dim3& grid, const dim3& block, size_t shared_bytes, std::vector<dim3> places, const std::function<void()>& body, uint64_t seed);
  void run();

  dim3 grid, size;
  std::vector<Block> blocks;

  Thread& self() { return *current_; }
  void wait(const void* key, const char* reason);  // until wake(key); the caller checks its condition again
  void wake(const void* key);
  void later(std::function<void()> work);  // what the hardware does at its leisure
  bool chance(unsigned percent) { return random_() % 100 < percent; }

  // Both halves of barrier.cluster.
  void cluster_arrive();
  void cluster_wait();

 private:
  static void entry(void* cluster);
  void finish();
  void cluster_check();
  [[noreturn]] void standstill();

  const std::function<void()>& body_;
  std::vector<Thread> threads_;
  std::vector<Thread*> ready_;
  std::unordered_map<const void*, std::vector<Thread*>> waiting_;
  std::vector<std::function<void()>> pending_;
  std::mt19937_64 random_;
  std::exception_ptr error_;
  Thread* current_ = nullptr;
  size_t alive_ = 0, cluster_arrived_ = 0;
  unsigned cluster_rounds_ = 0;
};

extern thread_local Cluster* machine;
inline Thread& thread() { return machine->self(); }

// Run a grid, cluster after cluster.
void run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, unsigned cluster, const std::function<void()>& body);

// --- shared memory ---

char* dynamic_shared();
void* shared_variable(int id, size_t bytes);
uint32_t shared_address(const void* p);                    // of this block's memory
char* at(uint32_t address, size_t bytes, Block** of = nullptr);  // of this block, or of another's by mapa
uint32_t in_block(uint32_t address, unsigned rank);

// --- barriers ---

void named_barrier(unsigned id, unsigned threads, bool wait);  // threads 0: all of the block
void barrier_init(uint32_t address, unsigned arrivals);
void barrier_arrive(uint32_t address, unsigned expected_bytes);
void barrier_complete(Block& block, uint32_t offset, unsigned bytes);
void barrier_wait(uint32_t address, unsigned parity);

// --- warps ---

// Every lane hands in a value and gets all of them.
const uint64_t* collect(uint64_t value);

// --- copy engine and tensor cores ---

void load_box(uint32_t to, const void* map, const std::vector<int>& coordinates, uint32_t barrier, int mask);  // mask < 0: this block
void load_bytes(uint32_t to, const void* from, unsigned bytes, uint32_t barrier);
void send(uint32_t to, const std::vector<uint32_t>& values, uint32_t barrier);
void multiply(const Multiply& of_thread, void* sums, const std::array<uint32_t, 4>& registers);
void multiply_commit();
void multiply_wait(int pending);

// --- launches ---

void enqueue(cudaStream_t stream, std::function<void()> work);

template <class... Params, class... Args>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = config->attrs[i].val.clusterDim.x;
  }
  std::tuple<std::decay_t<Params>...> values(std::forward<Args>(args)...);
  enqueue(config->stream, [=, grid = config->gridDim, block = config->blockDim, bytes = config->dynamicSmemBytes] {
    run_grid(grid, block, bytes, cluster, [&] { std::apply(kernel, values); });
  });
  return cudaSuccess;
}

}  // namespace emulator
