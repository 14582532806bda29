// SPDX-License-Identifier: Apache-2.0
// wgmma: the matrix instruction of a warpgroup (4 warps, 128 threads): 64 x N results += 64 x K times K x N, both operands
// with K in 32 bytes (16 halves, 32 values of 8 bits); FP32 results, INT32 for INT8. `multiply` takes A from shared memory,
// `multiply_registers` from registers (FP16 only) with B as (k, n) rows ("transposed") or (n, k) rows. Register layout of the
// results (PTX ISA, wgmma m64nNk16): thread t of the warpgroup holds row 16 * (t / 32) + t % 32 / 4 (and that + 8) and, for
// every 8 columns j, columns 8 j + 2 * (t % 4) and + 1: d[4 j], d[4 j + 1] of the first row, d[4 j + 2], d[4 j + 3] of the second.
#pragma once

#include <type_traits>

#include "format.h"
#include "sm90.cuh"

namespace bert::sm90 {

// Where an operand lies in shared memory: rows of kRowBytes (128, 64 or 32), swizzled by the copy engine over that width, in
// groups of 8 rows. The fields: address / 16, leading offset (unused for these shapes), group stride / 16, swizzle mode.
template <int kRowBytes>
__device__ inline uint64_t descriptor(const void* p) {
  static_assert(kRowBytes == 128 || kRowBytes == 64 || kRowBytes == 32);
  constexpr uint64_t swizzle = kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3;
  return ((shared_address(p) & 0x3FFFF) >> 4) | (1ull << 16) | (static_cast<uint64_t>(8 * kRowBytes / 16) << 32) | (swizzle << 62);
}

__device__ inline void multiply_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait until at most kPending committed groups are unfinished.
template <int kPending>
__device__ inline void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// What products of a format are added up in.
template <Format kFormat>
using Sum = std::conditional_t<kFormat == Format::int8, int, float>;

// Something of each of a thread's two rows of results.
struct Rows {
  float a, b;
};

// Sums over the four threads that hold a row.
__device__ inline Rows quad_sum(Rows s) {
#pragma unroll
  for (int i = 1; i < 4; i *= 2) s.a += __shfl_xor_sync(~0u, s.a, i), s.b += __shfl_xor_sync(~0u, s.b, i);
  return s;
}

// Keep the compiler from moving uses of the accumulators across the asynchronous multiplication.
template <int kCount>
__device__ inline void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ inline void pin(int (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// Keep a left operand in its registers up to here: to the compiler it is free once the multiplication has begun.
__device__ inline void keep(const uint32_t (&a)[4]) { asm volatile("" ::"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]) : "memory"); }

// d += A B, or d = A B where not `accumulate`; a and b are descriptors.
template <int kN, Format kFormat = Format::half>
__device__ void multiply(Sum<kFormat> (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate);

template <int kN, bool kTransposed>
__device__ void multiply_registers(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate);

// The operand lists of the instruction, as text and as constraints; undefined again below.
#define BERT_TEXT16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define BERT_TEXT24 BERT_TEXT16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define BERT_TEXT32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BERT_TEXT36 BERT_TEXT32 ", %32, %33, %34, %35"
#define BERT_TEXT48 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define BERT_TEXT52 BERT_TEXT48 ", %48, %49, %50, %51"
#define BERT_TEXT64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BERT_TEXT96 \
  BERT_TEXT64 ", "  \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BERT_TEXT128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define BERT_D4(C, i) C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3])
#define BERT_D8(C, i) C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3]), C(d[i + 4]), C(d[i + 5]), C(d[i + 6]), C(d[i + 7])
#define BERT_D16(C, i) BERT_D8(C, i), BERT_D8(C, i + 8)
#define BERT_D24(C, i) BERT_D16(C, i), BERT_D8(C, i + 16)
#define BERT_D32(C, i) BERT_D16(C, i), BERT_D16(C, i + 16)
#define BERT_D36(C, i) BERT_D32(C, i), BERT_D4(C, i + 32)
#define BERT_D48(C, i) BERT_D32(C, i), BERT_D16(C, i + 32)
#define BERT_D52(C, i) BERT_D48(C, i), BERT_D4(C, i + 48)
#define BERT_D64(C, i) BERT_D32(C, i), BERT_D32(C, i + 32)
#define BERT_D96(C, i) BERT_D64(C, i), BERT_D32(C, i + 64)
#define BERT_D128(C, i) BERT_D64(C, i), BERT_D64(C, i + 64)

// N, half of it, format, constraint of the sums, instruction, scale operands, and the places of a, b, p behind the results.
#define BERT_MULTIPLY(kN, H, FORMAT, C, SHAPE, SCALES, A, B, P)                                                             \
  template <>                                                                                                               \
  __device__ inline void multiply<kN, FORMAT>(Sum<FORMAT>(&d)[H], uint64_t a, uint64_t b, bool accumulate) {                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #kN SHAPE " {" BERT_TEXT##H \
                 "}, %" A ", %" B ", p" SCALES ";\n}\n"                                                                      \
                 : BERT_D##H(C, 0)                                                                                          \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                                      \
  }
#define BERT_MULTIPLY_ALL(kN, H, A, B, P)                                                            \
  BERT_MULTIPLY(kN, H, Format::half, "+f", "k16.f32.f16.f16", ", 1, 1, 0, 0", A, B, P)               \
  BERT_MULTIPLY(kN, H, Format::fp8, "+f", "k32.f32.e4m3.e4m3", ", 1, 1", A, B, P)                    \
  BERT_MULTIPLY(kN, H, Format::int8, "+r", "k32.s32.s8.s8", "", A, B, P)

BERT_MULTIPLY_ALL(32, 16, "16", "17", "18")
BERT_MULTIPLY_ALL(48, 24, "24", "25", "26")
BERT_MULTIPLY_ALL(64, 32, "32", "33", "34")
BERT_MULTIPLY_ALL(96, 48, "48", "49", "50")
BERT_MULTIPLY_ALL(128, 64, "64", "65", "66")
BERT_MULTIPLY_ALL(192, 96, "96", "97", "98")
BERT_MULTIPLY_ALL(256, 128, "128", "129", "130")
// INT8 knows no such widths.
BERT_MULTIPLY(72, 36, Format::half, "+f", "k16.f32.f16.f16", ", 1, 1, 0, 0", "36", "37", "38")
BERT_MULTIPLY(104, 52, Format::half, "+f", "k16.f32.f16.f16", ", 1, 1, 0, 0", "52", "53", "54")

#define BERT_MULTIPLY_REGISTERS(kN, H, TRANSPOSED, ORDER, A0, A1, A2, A3, B, P)                                                       \
  template <>                                                                                                                       \
  __device__ inline void multiply_registers<kN, TRANSPOSED>(float (&d)[H], const uint32_t (&a)[4], uint64_t b, bool accumulate) {   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #kN "k16.f32.f16.f16 {" BERT_TEXT##H \
                 "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1, " ORDER ";\n}\n"                                         \
                 : BERT_D##H("+f", 0)                                                                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));                          \
  }

BERT_MULTIPLY_REGISTERS(32, 16, true, "1", "16", "17", "18", "19", "20", "21")
BERT_MULTIPLY_REGISTERS(64, 32, true, "1", "32", "33", "34", "35", "36", "37")

#undef BERT_MULTIPLY_REGISTERS
#undef BERT_MULTIPLY_ALL
#undef BERT_MULTIPLY
#undef BERT_D4
#undef BERT_D8
#undef BERT_D16
#undef BERT_D24
#undef BERT_D32
#undef BERT_D36
#undef BERT_D48
#undef BERT_D52
#undef BERT_D64
#undef BERT_D96
#undef BERT_D128
#undef BERT_TEXT16
#undef BERT_TEXT24
#undef BERT_TEXT32
#undef BERT_TEXT36
#undef BERT_TEXT48
#undef BERT_TEXT52
#undef BERT_TEXT64
#undef BERT_TEXT96
#undef BERT_TEXT128

// kSteps multiplications along the depth, as one group: the operands of each lie 32 bytes behind those of the one before.
template <int kSteps, int kN, Format kFormat = Format::half>
__device__ inline void multiply_box(Sum<kFormat> (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  pin(d);
  multiply_fence();
#pragma unroll
  for (int k = 0; k < kSteps; ++k) multiply<kN, kFormat>(d, a + 2 * k, b + 2 * k, accumulate || k > 0);
  multiply_commit();
  pin(d);
}

}  // namespace bert::sm90
