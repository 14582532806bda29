// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace emulator {

thread_local Cluster* machine = nullptr;

namespace {

constexpr size_t kStack = 256 << 10, kShared = 228 << 10;

// Stacks outlive a cluster: mapping them costs more than running on them.
char* stack(size_t number) {
  static thread_local std::vector<char*> all;
  while (all.size() <= number) {
    void* made = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) throw std::bad_alloc();
    all.push_back(static_cast<char*>(made));
  }
  return all[number];
}

std::string place(const Thread& t) {
  const dim3& b = t.block->index;
  return "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + "), thread " + std::to_string(t.number);
}

}  // namespace

void fault(const std::string& what) { throw Fault(what + " (" + place(thread()) + ")"); }

Cluster::Cluster(const dim3& grid, const dim3& block, size_t shared_bytes, std::vector<dim3> places, const std::function<void()>& body, uint64_t seed)
    : grid(grid), size(block), body_(body), random_(seed) {
  const unsigned count = block.x * block.y * block.z;
  if (shared_bytes > kShared) throw Fault("a block wants " + std::to_string(shared_bytes) + " bytes of shared memory");
  blocks.resize(places.size());
  threads_.resize(places.size() * count);
  for (unsigned rank = 0; rank < places.size(); ++rank) {
    Block& b = blocks[rank];
    b.index = places[rank];
    b.rank = rank;
    b.memory.assign(kShared + 8192 + 1024, '\xff');  // NaN in every format; static variables lie behind what is asked for
    b.shared = b.memory.data() + (1024 - reinterpret_cast<uintptr_t>(b.memory.data()) % 1024) % 1024;
    b.used = (shared_bytes + 1023) / 1024 * 1024;
    b.warps.resize((count + kWarp - 1) / kWarp);
    b.warpgroups.resize((count + kWarpgroup - 1) / kWarpgroup);
    b.alive = count;
    for (unsigned i = 0; i < count; ++i) {
      Thread& t = threads_[rank * count + i];
      t.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
      t.block = &b;
      t.number = i;
    }
  }
  alive_ = threads_.size();
}

void Cluster::entry(void* me) {
  Cluster* cluster = static_cast<Cluster*>(me);
  try {
    cluster->body_();
  } catch (...) {
    if (!cluster->error_) cluster->error_ = std::current_exception();
  }
  cluster->finish();
  cluster->current_->fiber.suspend();
}

void Cluster::run() {
  machine = this;
  for (size_t i = 0; i < threads_.size(); ++i) {
    threads_[i].fiber.start(stack(i), kStack, entry, this);
    ready_.push_back(&threads_[i]);
  }
  while (alive_ > 0 && !error_) {
    if (!pending_.empty() && (ready_.empty() || chance(10))) {
      std::swap(pending_[random_() % pending_.size()], pending_.back());
      const std::function<void()> work = std::move(pending_.back());
      pending_.pop_back();
      work();
      continue;
    }
    if (ready_.empty()) standstill();
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    current_ = ready_.back();
    ready_.pop_back();
    current_->fiber.resume();
  }
  if (!error_ && !pending_.empty()) throw Fault("a cluster ended with copies under way");
  machine = nullptr;
  if (error_) std::rethrow_exception(error_);
}

void Cluster::finish() {
  Thread& me = *current_;
  me.finished = true;
  --alive_;
  --me.block->alive;
  if (me.cluster_arrivals <= cluster_rounds_) ++cluster_arrived_;  // who has left counts as arrived
  cluster_check();
  NamedBarrier& all = me.block->barriers[0];  // __syncthreads counts the threads that are left
  if (all.arrived > 0 && all.arrived == me.block->alive) all.arrived = 0, ++all.rounds, wake(&all);
}

void Cluster::standstill() {
  std::map<std::string, int> reasons;
  for (const Thread& t : threads_) {
    if (!t.finished) ++reasons[std::string(t.reason) + " in block " + std::to_string(t.block->rank) + " of the cluster"];
  }
  std::string text = "all threads wait:";
  for (const auto& [reason, count] : reasons) text += " " + std::to_string(count) + " for " + reason + ";";
  throw Fault(text);
}

void Cluster::wait(const void* key, const char* reason) {
  current_->reason = reason;
  waiting_[key].push_back(current_);
  current_->fiber.suspend();
}

void Cluster::wake(const void* key) {
  const auto found = waiting_.find(key);
  if (found == waiting_.end()) return;
  ready_.insert(ready_.end(), found->second.begin(), found->second.end());
  waiting_.erase(found);
}

void Cluster::later(std::function<void()> work) { pending_.push_back(std::move(work)); }

void Cluster::cluster_check() {
  if (cluster_arrived_ < threads_.size()) return;
  cluster_arrived_ = threads_.size() - alive_;
  ++cluster_rounds_;
  wake(&cluster_rounds_);
}

void Cluster::cluster_arrive() {
  if (current_->cluster_arrivals > cluster_rounds_) fault("a second arrival at the cluster's barrier");
  current_->cluster_arrivals = cluster_rounds_ + 1;
  ++cluster_arrived_;
  cluster_check();
}

void Cluster::cluster_wait() {
  const unsigned wanted = current_->cluster_arrivals;
  while (cluster_rounds_ < wanted) wait(&cluster_rounds_, "the cluster's barrier");
}

void run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, unsigned cluster, const std::function<void()>& body) {
  static const uint64_t seed = std::getenv("EMULATOR_SEED") ? std::strtoull(std::getenv("EMULATOR_SEED"), nullptr, 10) : 1;
  if (grid.x % cluster) throw Fault("a grid of " + std::to_string(grid.x) + " blocks has no whole clusters of " + std::to_string(cluster));
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; x += cluster) {
        std::vector<dim3> places;
        for (unsigned i = 0; i < cluster; ++i) places.emplace_back(x + i, y, z);
        Cluster(grid, block, shared_bytes, std::move(places), body, seed + x + 1000 * y + 1000000ull * z).run();
      }
    }
  }
}

// --- shared memory: addresses of 24 bits; above them the rank in the cluster plus 1 where mapa has put it ---

char* dynamic_shared() { return thread().block->shared; }

void* shared_variable(int id, size_t bytes) {
  Block& block = *thread().block;
  const auto [found, fresh] = block.variables.try_emplace(id, block.used);
  if (fresh) block.used += (bytes + 15) / 16 * 16;
  if (block.used > kShared + 8192) fault("too many variables in shared memory");
  return block.shared + found->second;
}

uint32_t shared_address(const void* p) {
  const ptrdiff_t offset = static_cast<const char*>(p) - thread().block->shared;
  if (offset < 0 || static_cast<size_t>(offset) >= thread().block->used) fault("a pointer is not into this block's shared memory");
  return static_cast<uint32_t>(offset);
}

char* at(uint32_t address, size_t bytes, Block** of) {
  const unsigned rank = address >> 24, offset = address & 0xFFFFFF;
  if (rank > machine->blocks.size()) fault("there is no such block in the cluster");
  Block& block = rank == 0 ? *thread().block : machine->blocks[rank - 1];
  if (offset + bytes > block.used) fault("address " + std::to_string(offset) + " is beyond the block's shared memory");
  if (offset % std::min<size_t>(bytes, 16)) fault("address " + std::to_string(offset) + " is not a multiple of " + std::to_string(bytes));
  if (of) *of = &block;
  return block.shared + offset;
}

uint32_t in_block(uint32_t address, unsigned rank) {
  if (rank >= machine->blocks.size()) fault("the cluster has no block " + std::to_string(rank));
  return (rank + 1) << 24 | (address & 0xFFFFFF);
}

// --- barriers ---

void named_barrier(unsigned id, unsigned threads, bool wait) {
  Block& block = *thread().block;
  NamedBarrier& barrier = block.barriers[id];
  if (threads == 0) threads = block.alive;
  if (barrier.arrived > 0 && barrier.expected != threads && id != 0) fault("threads expect different numbers at barrier " + std::to_string(id));
  barrier.expected = threads;
  const unsigned round = barrier.rounds;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.rounds;
    machine->wake(&barrier);
  } else if (wait) {
    while (barrier.rounds == round) machine->wait(&barrier, "a barrier of threads");
  }
}

namespace {

// An mbarrier in its 8 bytes: outstanding bytes, arrivals that are missing and that a phase wants, parity of the phase.
struct Barrier {
  int32_t bytes;
  uint32_t missing : 12, wanted : 12, magic : 7, phase : 1;
};
static_assert(sizeof(Barrier) == 8);
constexpr uint32_t kMagic = 0x5A;

Barrier& barrier_at(uint32_t address, Block** of = nullptr) {
  Barrier& b = *reinterpret_cast<Barrier*>(at(address, 8, of));
  if (b.magic != kMagic) fault("there is no mbarrier at " + std::to_string(address & 0xFFFFFF));
  return b;
}

void end_phase(Barrier& b) {
  if (b.missing > 0 || b.bytes != 0) return;
  b.phase ^= 1;
  b.missing = b.wanted;
  machine->wake(&b);
}

}  // namespace

void barrier_init(uint32_t address, unsigned arrivals) {
  *reinterpret_cast<Barrier*>(at(address, 8)) = {0, arrivals, arrivals, kMagic, 0};
}

void barrier_arrive(uint32_t address, unsigned expected_bytes) {
  Block* block = nullptr;
  Barrier& b = barrier_at(address, &block);
  if (block->alive == 0) fault("an arrival at a barrier of a block that has left");
  if (b.missing == 0) fault("more arrivals at an mbarrier than its phase wants");
  b.bytes += static_cast<int32_t>(expected_bytes);
  --b.missing;
  end_phase(b);
}

void barrier_complete(Block& block, uint32_t offset, unsigned bytes) {
  if (block.alive == 0) throw Fault("a copy into the shared memory of a block that has left");
  Barrier& b = *reinterpret_cast<Barrier*>(block.shared + offset);
  if (b.magic != kMagic) throw Fault("a copy counts at something that is no mbarrier");
  b.bytes -= static_cast<int32_t>(bytes);
  end_phase(b);
}

void barrier_wait(uint32_t address, unsigned parity) {
  if (parity > 1) fault("a parity of " + std::to_string(parity));
  Barrier& b = barrier_at(address);
  while (b.phase == parity) machine->wait(&b, "an mbarrier");
}

const uint64_t* collect(uint64_t value) {
  Thread& me = thread();
  Warp& warp = me.block->warps[me.warp()];
  const unsigned round = me.collectives++;
  uint64_t* values = warp.values[round % 2];
  values[me.lane()] = value;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    ++warp.rounds;
    machine->wake(&warp);
  } else {
    while (warp.rounds <= round) machine->wait(&warp, "the other lanes of a warp");
  }
  return values;
}

}  // namespace emulator
