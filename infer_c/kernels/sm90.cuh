// SPDX-License-Identifier: Apache-2.0
// The Hopper instructions the kernels use, one inline function each: mbarriers, the bulk tensor copy engine (TMA),
// clusters. Names and semantics as in the PTX ISA manual; sm_90a only.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace bert::sm90 {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// --- registers: a warpgroup that needs few gives the others more ---

template <int kOfEachThread>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kOfEachThread));
}
template <int kOfEachThread>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kOfEachThread));
}

// Whether a block of one warpgroup with `few` and others with `many` has been launched with as many; more would never come.
__host__ __device__ constexpr bool registers_suffice(int few, int many, int others) {
  const int threads = (1 + others) * 128;
  return (few + others * many) * 128 <= threads * (65536 / threads / 8 * 8);
}

// --- mbarriers: a phase ends when all expected arrivals and all expected bytes are in ---

__device__ inline void barrier_init(uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Make initialised barriers visible to the copy engine and to the cluster, before a __syncthreads or a cluster barrier.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void expect_bytes(uint64_t* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrive at the barrier of the same name in another block of the cluster. Not with .release at cluster scope: that costs a
// fence over all memory, and what the arrival orders here are reads by the tensor cores, which are complete.
__device__ inline void arrive_remote(uint64_t* barrier, unsigned rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// Wait for the end of the phase of this parity (0 for the first). The hardware suspends the thread for a while on each try.
__device__ inline void wait(uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\nbra again;\nfinished:\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// --- the copy engine ---

__device__ inline void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}

// Bring a box into the L2 cache and no further.
__device__ inline void prefetch_box(const CUtensorMap* map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(reinterpret_cast<uint64_t>(map)), "r"(column), "r"(row) : "memory");
}

// Copy the box whose first element is (column, row) into shared memory; its bytes count at `barrier`. Both are addresses in shared memory.
__device__ inline void load_box(uint32_t destination, const CUtensorMap* map, int column, int row, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(destination),
               "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "r"(column), "r"(row)
               : "memory");
}
__device__ inline void load_box(void* destination, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  load_box(shared_address(destination), map, column, row, shared_address(barrier));
}

// The same into all blocks of the cluster named in `mask`, at the same place in each, counted at each one's own barrier.
__device__ inline void load_box_multicast(uint32_t destination, const CUtensorMap* map, int column, int row, uint32_t barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(destination),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "r"(column), "r"(row), "h"(mask)
      : "memory");
}
__device__ inline void load_box_multicast(void* destination, const CUtensorMap* map, int column, int row, uint64_t* barrier, uint16_t mask) {
  load_box_multicast(shared_address(destination), map, column, row, shared_address(barrier), mask);
}

// The same of a map of five dimensions, whose box begins at `column` of the first and `group` of the last.
__device__ inline void load_groups_multicast(void* destination, const CUtensorMap* map, int column, int group, uint64_t* barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %4, %4, %5}], [%2], %6;" ::"r"(
          shared_address(destination)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(column), "r"(0), "r"(group), "h"(mask)
      : "memory");
}

// Plain bytes, a multiple of 16 on both sides: into shared memory, counted at `barrier`; or into the L2 cache and no further.
__device__ inline void load_bytes(void* destination, const void* source, unsigned bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(destination)), "l"(source),
               "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
__device__ inline void prefetch_bytes(const void* source, unsigned bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
}

// --- clusters ---

__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Relaxed: orders no memory, and so needs no fence. Used where only "everybody is here" matters.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// The address of the same place in another block's shared memory.
__device__ inline uint32_t in_block(uint32_t address, unsigned rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

// Store registers in another block's shared memory, counted at a barrier of that block; both addresses from in_block.
__device__ inline void send(uint32_t to, uint32_t barrier, const uint32_t (&v)[4]) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to), "r"(v[0]), "r"(v[1]),
               "r"(v[2]), "r"(v[3]), "r"(barrier)
               : "memory");
}
__device__ inline void send(uint32_t to, uint32_t barrier, const uint32_t (&v)[2]) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to), "r"(v[0]), "r"(v[1]), "r"(barrier)
               : "memory");
}

// A barrier of `threads` threads of the block; `id` 1 to 15 (0 is __syncthreads).
__device__ inline void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
__device__ inline void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

}  // namespace bert::sm90
