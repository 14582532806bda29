// SPDX-License-Identifier: Apache-2.0
// Second half of the few-rows product: the blocks of a tile send each other their sums, and each finishes its share of the rows.
#pragma once

#include "product_epilogue.cuh"
#include "product_few.h"
#include "wgmma.cuh"

namespace bert::few {

template <int kTileRows, int kTileColumns, int kParts, bool kHalf>
struct Shape {
  static constexpr Cut kCut{kTileRows, kTileColumns, kParts, kHalf};
  static constexpr int kRows = kTileRows, kTile = kTileColumns, kSplit = kParts;
  static constexpr bool kHalfSums = kHalf;
  static constexpr int kStageBytes = kCut.stage_bytes(), kReceivedBytes = kCut.received_bytes(), kSideBytes = 3 * kTile * 4;
  static constexpr int kGroups = kRows / 64, kWarps = 4 * kGroups, kThreads = (kWarps + kFeeders) * kWarp;
  static constexpr int kFragments = kWarps / kSplit;  // of 16 rows, finished by each block
  static_assert(kWarps % kSplit == 0 && kWarp % kSplit == 0);
  static constexpr int kChunks = kTile / 8;                               // of 8 columns, of which a lane holds 4 sums
  static constexpr int kLanes = kWarp / kSplit;                           // of a sender's warp whose sums one warp finishes
  static constexpr int kUnits = ceil_div(kChunks, kSplit);                // chunks that a lane finishes
  static constexpr int kTogether = kHalfSums && kUnits % 2 == 0 ? 2 : 1;  // chunks that a lane sends at once
  static constexpr int kVectors = ceil_div(kChunks, kTogether);           // times that it sends
  static constexpr int kVector = kTogether * (kHalfSums ? 8 : 16);        // bytes
  static constexpr int kSlotBytes = kFragments * kVectors * kWarp * kVector;
  static_assert(kSplit == 1 || kSplit * kSlotBytes <= kReceivedBytes);
  static constexpr int kRowLanes = 4 * kSplit;                            // lanes that hold a row
  static constexpr int kHeld = kSplit == 4 ? 2 : 16 / kRowLanes;          // statistics of a row that a lane fetches ahead
  // Two blocks a multiprocessor, so that the next kernel's can be there early, where the registers suffice.
  static constexpr int blocks(bool residual) {
    const int needed = kTile / 2 + (residual && kUnits > 4 ? 2 * kUnits : 0) + 28;
    const int warps_a_quarter = (2 * (kWarps + kFeeders) + 3) / 4, registers = 16384 / kWarp / warps_a_quarter / 8 * 8;
    return needed <= registers ? 2 : 1;
  }
};

// A lane's share of the finished tile: kUnits chunks of two rows. Before the exchange the lane `source` of a sender's warp held them.
template <class S>
struct Share {
  int rows[2], end;  // of the matrix
  int fragment, source, first_chunk;
  int first_column, columns, quad, odd, row_lane;

  __device__ Share(int warp, int lane, int rank, int first_row, int end, int first_column, int columns)
      : end(end), fragment(warp / S::kSplit), first_column(first_column), columns(columns), quad(lane % 4), odd(lane & 1) {
    source = warp % S::kSplit * S::kLanes + lane % S::kLanes;
    first_chunk = lane / S::kLanes * S::kUnits;
    rows[0] = first_row + (rank * S::kFragments + fragment) * 16 + source / 4, rows[1] = rows[0] + 8;
    row_lane = quad + 4 * (lane / S::kLanes);
  }
  __device__ bool real(int u) const { return first_chunk + u < S::kChunks && first_column + 8 * (first_chunk + u) < columns; }
  __device__ bool real(int r, int u) const { return rows[r] < end && real(u); }
  __device__ int chunk(int u) const { return min(first_chunk + u, S::kChunks - 1); }
  // Columns of chunks u and u + 1 as they lie in memory: 4 in a row a lane; of a last chunk without a partner 2.
  __device__ int column_of_two(int u) const { return first_column + 8 * (first_chunk + u + odd) + 2 * (quad & 2); }
  __device__ int column_of_one(int u) const { return first_column + 8 * (first_chunk + u) + 2 * quad; }
};

// Spreads the reading lanes of a warp over the banks.
template <class S>
__device__ inline int bank_mix(int vector) {
  return vector / (S::kUnits / S::kTogether) * S::kLanes * S::kVector & 127;
}

// Two neighbouring lanes exchange halves: from (2 of 8 columns, 2 of the next 8) in each to 4 columns in a row in each, and back.
__device__ inline void swap_halves(uint32_t& a, uint32_t& b, int odd) {
  const uint32_t got = __shfl_xor_sync(~0u, odd ? a : b, 1);
  if (odd) {
    a = got;
  } else {
    b = got;
  }
}

template <class S>
__device__ inline void load_residual(uint32_t (&residual)[2][S::kUnits], const Product& p, const Share<S>& my) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const __half* from = p.residual + static_cast<size_t>(my.rows[r]) * p.columns;
#pragma unroll
    for (int u = 0; u < S::kUnits; u += 2) {
      if (u + 1 < S::kUnits) {
        const uint2 x = my.real(r, u + my.odd) ? __ldcg(reinterpret_cast<const uint2*>(from + my.column_of_two(u))) : uint2{};
        residual[r][u] = x.x, residual[r][u + 1] = x.y;
      } else {
        residual[r][u] = my.real(r, u) ? __ldcg(reinterpret_cast<const uint32_t*>(from + my.column_of_one(u))) : 0u;
      }
    }
  }
}

// Sum of both rows' values over the lanes that hold a row; side by side, so that one's latency hides the other's.
template <class S>
__device__ inline void sum_rows(float (&x)[2]) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    if (step >= 4 && step < S::kLanes) continue;  // other rows
#pragma unroll
    for (int r = 0; r < 2; ++r) x[r] += __shfl_xor_sync(~0u, x[r], step);
  }
}

template <class S>
__device__ inline float2 tile_stats(const RowStats& stats, const Share<S>& my, int r, int tile) {
  return __ldcg(stats.data + static_cast<size_t>(min(my.rows[r], my.end - 1)) * stats.tiles + tile);
}

// Statistics of both rows, each tile of them by one of the lanes that hold the row.
template <class S>
__device__ inline void load_stats(float2 (&held)[2][S::kHeld], const RowStats& stats, const Share<S>& my) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int i = 0; i < S::kHeld; ++i) {
      const int tile = my.row_lane + i * S::kRowLanes;
      held[r][i] = tile < stats.tiles ? tile_stats(stats, my, r, tile) : float2{};
    }
  }
}

// Both rows' statistics from those of their tiles: first the means, then the squared deviations from them (row_stats.cuh has the
// form that needs each tile once, but divides for each).
template <class S>
__device__ inline void combine_stats(Norm (&norms)[2], const float2 (&held)[2][S::kHeld], const RowStats& stats, const Share<S>& my, int wide, float eps) {
  const auto each_tile = [&](auto add) {
#pragma unroll
    for (int i = 0; i < S::kHeld; ++i) {
      const int tile = my.row_lane + i * S::kRowLanes;
      const float width = static_cast<float>(max(min(stats.width, wide - tile * stats.width), 0));
#pragma unroll
      for (int r = 0; r < 2; ++r) add(r, held[r][i], width);
    }
#pragma unroll 1
    for (int tile = my.row_lane + S::kHeld * S::kRowLanes; tile < stats.tiles; tile += S::kRowLanes) {
      const float width = static_cast<float>(min(stats.width, wide - tile * stats.width));
#pragma unroll
      for (int r = 0; r < 2; ++r) add(r, tile_stats(stats, my, r, tile), width);
    }
  };
  const float share = __fdividef(1.f, static_cast<float>(wide));
  float means[2] = {0, 0}, squares[2] = {0, 0};
  each_tile([&](int r, float2 tile, float width) { means[r] += width * tile.x; });
  sum_rows<S>(means);
#pragma unroll
  for (int r = 0; r < 2; ++r) means[r] *= share;
  each_tile([&](int r, float2 tile, float width) {
    const float delta = tile.x - means[r];
    squares[r] += tile.y + width * delta * delta;
  });
  sum_rows<S>(squares);
#pragma unroll
  for (int r = 0; r < 2; ++r) norms[r] = {means[r], rsqrtf(squares[r] * share + eps)};
}

// A warp's sums go to the block that finishes its rows: straight from the registers, counted at that block's barrier `complete`.
template <class S, class Sum>
__device__ inline void send_sums(const Sum (&acc)[S::kTile / 2], char* received, uint64_t* complete, int warp, int lane, int rank, unsigned receiver) {
  const int owner = warp / S::kFragments;
  const uint32_t to = sm90::shared_address(received) + (rank * S::kFragments + warp % S::kFragments) * S::kVectors * kWarp * S::kVector;
  const uint32_t remote = sm90::in_block(to, receiver), barrier = sm90::in_block(sm90::shared_address(complete), receiver);
  const auto each_vector = [&](auto store) {
#pragma unroll
    for (int k = 0; k < S::kVectors; ++k) {
      uint32_t v[S::kVector / 4] = {};
#pragma unroll
      for (int j = k * S::kTogether; j < (k + 1) * S::kTogether && j < S::kChunks; ++j) {
        if constexpr (S::kHalfSums) {
          const int at = j % S::kTogether * 2;
          v[at] = narrow_pair<Format::half>(acc[4 * j], acc[4 * j + 1]), v[at + 1] = narrow_pair<Format::half>(acc[4 * j + 2], acc[4 * j + 3]);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) v[i] = reinterpret_cast<const uint32_t&>(acc[4 * j + i]);
        }
      }
      store(k * kWarp * S::kVector + ((lane * S::kVector) ^ bank_mix<S>(k)), v);
    }
  };
  if (owner != rank) return each_vector([&](int at, const auto& v) { sm90::send(remote + at, barrier, v); });
  each_vector([&](int at, const auto& v) {
    if constexpr (S::kVector == 8) {
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to + at), "r"(v[0]), "r"(v[1]) : "memory");
    } else {
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + at), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
    }
  });
  sm90::arrive(complete);
}

// Add what all blocks sent up.
template <class S, class Sum>
__device__ inline void add_received(Sum (&v)[S::kUnits][4], const char* received, const Share<S>& my) {
#pragma unroll
  for (int u = 0; u < S::kUnits; u += S::kTogether) {
    const int k = my.chunk(u) / S::kTogether;
    const char* at = received + (my.fragment * S::kVectors + k) * kWarp * S::kVector + ((my.source * S::kVector) ^ bank_mix<S>(k));
#pragma unroll
    for (int i = 0; i < 4 * S::kTogether; ++i) v[u + i / 4][i % 4] = 0;
#pragma unroll
    for (int part = 0; part < S::kSplit; ++part) {
      using Vector = std::conditional_t<S::kVector == 8, uint2, uint4>;
      const Vector vector = *reinterpret_cast<const Vector*>(at + part * S::kSlotBytes);
      const auto* x = reinterpret_cast<const uint32_t*>(&vector);
      if constexpr (S::kHalfSums) {
#pragma unroll
        for (int i = 0; i < 2 * S::kTogether; ++i) {
          const float2 f = __half22float2(reinterpret_cast<const __half2&>(x[i]));
          v[u + i / 2][i % 2 * 2] += f.x, v[u + i / 2][i % 2 * 2 + 1] += f.y;
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) v[u][i] += reinterpret_cast<const Sum&>(x[i]);
      }
    }
  }
}

// Epilogue of the lane's share: `v` are whole sums, `side` the scales, biases and factors of the tile's columns. Stored as kOut.
template <class S, Format kFormat, Epilogue kEpilogue, Format kOut, class Sum>
__device__ inline void finish_share(const Sum (&v)[S::kUnits][4], const uint32_t (&residual)[2][S::kUnits], const Norm (&norms)[2], const char* side,
                                    const Product& p, const Share<S>& my, int column_tile) {
  constexpr int kUnits = S::kUnits;
  float sums[2] = {0, 0};
  float kept[kUnits][4];  // as stored, for the statistics
  Stored<kOut>* to[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    ptrdiff_t offset = row_offset<kEpilogue, kOut>(p, my.rows[r]);
    asm volatile("" : "+l"(offset));  // once: the compiler would find it anew for every store
    to[r] = results_of<kEpilogue, kOut>(p) + offset;
  }
#pragma unroll
  for (int u = 0; u < kUnits; u += 2) {
    const int units = u + 1 < kUnits ? 2 : 1;
    uint32_t out[2][2] = {}, x[2][2] = {};
    if constexpr (kEpilogue == Epilogue::residual) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        x[r][0] = residual[r][u];
        if (units == 2) {
          x[r][1] = residual[r][u + 1 < kUnits ? u + 1 : u];
          swap_halves(x[r][0], x[r][1], my.odd);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < units; ++h) {
      const int at = 8 * my.chunk(u + h) + 2 * my.quad, w = u + h < kUnits ? u + h : u;
      const float2 bias = reinterpret_cast<const float2*>(side + 4 * S::kTile)[at / 2];
      float2 scale{}, factor{};
      if (kFormat != Format::half) scale = reinterpret_cast<const float2*>(side)[at / 2];
      if (has_norms(kEpilogue)) factor = reinterpret_cast<const float2*>(side + 8 * S::kTile)[at / 2];
      const Column left{scale.x, bias.x, factor.x}, right{scale.y, bias.y, factor.y};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float2 old = __half22float2(reinterpret_cast<const __half2&>(x[r][h]));
        const auto two = finish_pair<kFormat, kEpilogue, kOut>(v[w][2 * r], v[w][2 * r + 1], left, right, norms[r], old, p.inverse_scale);
        out[r][h] = two;
        if constexpr (kWritesStats<kFormat, kEpilogue>) {
          const float2 y = __half22float2(reinterpret_cast<const __half2&>(two));
          kept[w][2 * r] = y.x, kept[w][2 * r + 1] = y.y;
          if (my.real(u + h)) sums[r] += y.x + y.y;
        }
      }
    }
    if constexpr (kOut == Format::half) {
      if (units == 2) swap_halves(out[0][0], out[0][1], my.odd), swap_halves(out[1][0], out[1][1], my.odd);
    } else if (units == 2) {  // both rows of 2 columns fit in a register
      uint32_t here = out[0][0] | out[1][0] << 16, next = out[0][1] | out[1][1] << 16;
      swap_halves(here, next, my.odd);
      out[0][0] = __byte_perm(here, next, 0x5410), out[1][0] = __byte_perm(here, next, 0x7632);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int column = units == 2 ? my.column_of_two(u) : my.column_of_one(u);
      bool stores = my.real(r, units == 2 ? u + my.odd : u);
      if (kEpilogue == Epilogue::bias && kOut == Format::half) stores = stores && column >= p.narrow_columns;
      if (!stores) continue;
      if (units == 1) {
        *reinterpret_cast<Pair<kOut>*>(to[r] + column) = static_cast<Pair<kOut>>(out[r][0]);
      } else if constexpr (kOut == Format::half) {
        *reinterpret_cast<uint2*>(to[r] + column) = make_uint2(out[r][0], out[r][1]);
      } else {
        *reinterpret_cast<uint32_t*>(to[r] + column) = out[r][0];
      }
    }
  }
  if constexpr (kWritesStats<kFormat, kEpilogue>) {
    const int width = min(S::kTile, p.columns - my.first_column);
    float squares[2] = {0, 0};
    sum_rows<S>(sums);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sums[r] = __fdividef(sums[r], static_cast<float>(width));  // the means
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const float d0 = kept[u][2 * r] - sums[r], d1 = kept[u][2 * r + 1] - sums[r];
        if (my.real(u)) squares[r] += d0 * d0 + d1 * d1;
      }
    }
    sum_rows<S>(squares);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (my.row_lane == 0 && my.rows[r] < my.end && width > 0) {
        p.out_stats.data[static_cast<size_t>(my.rows[r]) * p.out_stats.tiles + column_tile] = make_float2(sums[r], squares[r]);
      }
    }
  }
}

}  // namespace bert::few
