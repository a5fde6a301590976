// SPDX-License-Identifier: MIT
// Pieces of the attention kernels on Hopper's warpgroup products (wgmma): plans, tiles in shared memory, their copies.
#pragma once

#include <algorithm>
#include <iterator>

#include <lpo/backend/cuda/attention_tiles.cuh>
#include <lpo/backend/cuda/warpgroup_product.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// A block is a warpgroup that copies, and `groups` warpgroups of 64 rows each. They walk tiles of columns that arrive
// in a ring. Rows are queries and columns keys, or in one gradient the other way round.

/// What was tuned for a shape.
template <int Groups, int ColumnTile, int Blocks, bool Overlap, bool KeepRows, bool Turns, bool PackEarly = false>
struct AttentionWarpgroupPlan {
  static constexpr int groups = Groups, column_tile = ColumnTile;
  static constexpr int blocks = Blocks;        ///< on a multiprocessor
  static constexpr bool overlap = Overlap;     ///< exponentials beside the warpgroup's own second product
  static constexpr bool keep_rows = KeepRows;  ///< in registers
  static constexpr bool turns = Turns;         ///< the warpgroups' products one after the other
  /// Forward with overlap: new weights wait rounded, not as floats, for the product that still reads the ones before.
  static constexpr bool pack_early = PackEarly;
  static_assert(Overlap || !PackEarly);
};

/// Shared memory and registers, with `Tensors` tensors of rows and of columns.
template <int Width, class Plan, int Tensors>
struct AttentionWarpgroupLayout {
  static constexpr int panels = (Width + 63) / 64;  ///< of 64 columns of a tensor
  static constexpr int threads = 128 * (Plan::groups + 1);
  static constexpr int row_panel_bytes = 64 * tile_row_bytes, column_panel_bytes = Plan::column_tile * tile_row_bytes;
  static constexpr int row_tile_bytes = panels * row_panel_bytes, column_tile_bytes = panels * column_panel_bytes;
  static constexpr int row_bytes = Tensors * row_tile_bytes;      ///< of a warpgroup
  static constexpr int slot_bytes = Tensors * column_tile_bytes;  ///< of the ring
  static constexpr int term_bytes = Tensors > 1 ? Plan::column_tile* static_cast<int>(sizeof(QueryTerms<float>)) : 0;
  static constexpr int slack = 1023;  ///< the swizzle counts from multiples of 1024
  static constexpr int room = (226 << 10) / Plan::blocks - 1024 - Plan::groups * row_bytes - slack;
  static constexpr int slots = std::min(room / (slot_bytes + term_bytes), 8);
  static constexpr int bytes = Plan::groups * row_bytes + slots * (slot_bytes + term_bytes) + slack;
  static_assert(slots >= 2);
  // All threads get the same registers at the start; the copying warpgroup gives most of its away.
  static constexpr int copy_registers = Plan::groups == 3 ? 32 : 24;
  static constexpr int start_registers = 65536 / (threads * Plan::blocks) / 8 * 8;
  static constexpr int registers =
      std::min((start_registers * (Plan::groups + 1) - copy_registers) / Plan::groups / 8 * 8, 240);
};

/// A place in the ring; the copying warpgroup and the others walk it alike.
template <int Slots>
struct RingPlace {
  int slot = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == Slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/// The warpgroup's 64 rows as left operands.
template <int Width, int PanelBytes = 64 * tile_row_bytes>
__device__ __forceinline__ void load_rows(unsigned (&rows)[tile_steps<Width>][4], const unsigned char* tile) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
  for (int step = 0; step < tile_steps<Width>; ++step) {
    const int unit = 2 * step + lane / 16;
    load_matrices(rows[step],
                  shared_address(tile) + unit / 8 * PanelBytes + row * tile_row_bytes + (unit % 8 ^ row % 8) * 16);
  }
}

/// Starts sums = rows columns^T over the width. Rows that are kept come from registers, others by their descriptor.
template <class T, int Width, class Layout, bool Keep, int Count, int Steps>
__device__ __forceinline__ void multiply_rows(float (&sums)[Count], const unsigned (&kept)[Steps][4],
                                              std::uint64_t rows, std::uint64_t columns) {
#pragma unroll
  for (int step = 0; step < tile_steps<Width>; ++step) {
    const auto along = step % 4 * tile_advance<TileMajor::k>;
    const auto b = columns + (step / 4 * Layout::column_panel_bytes >> 4) + along;
    if constexpr (Keep)
      warpgroup_product<T, TileMajor::k>(sums, kept[step], b, step > 0);
    else
      warpgroup_product<T, TileMajor::k, TileMajor::k>(sums, rows + (step / 4 * Layout::row_panel_bytes >> 4) + along,
                                                       b, step > 0);
  }
}

/// Starts sums (+)= weights columns.
template <class T, int Count, int Steps>
__device__ __forceinline__ void multiply_weights(float (&sums)[Count], const unsigned (&weights)[Steps][4],
                                                 std::uint64_t columns, bool add) {
#pragma unroll
  for (int step = 0; step < Steps; ++step)
    warpgroup_product<T, TileMajor::mn>(sums, weights[step], columns + step * tile_advance<TileMajor::mn>,
                                        add || step > 0);
}

/// Eight columns of a thread's two rows as the left operand of the next product.
template <class T, int Steps>
__device__ __forceinline__ void pack_columns(unsigned (&weights)[Steps][4], int n, const float* values) {
  weights[n / 2][n % 2 * 2] = pack_pair<T>(values[0], values[1]);
  weights[n / 2][n % 2 * 2 + 1] = pack_pair<T>(values[2], values[3]);
}
/// The compiler forms the operands here, not after the next products have started.
template <int Steps>
__device__ __forceinline__ void settle(unsigned (&weights)[Steps][4]) {
#pragma unroll
  for (int n = 0; n < Steps; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(weights[n][i]));
}

/// Writes factor * sums as T to a tile of the warpgroup's rows, in the order that the copy engine expects.
template <class T, int Width>
__device__ __forceinline__ void write_rows(const float (&sums)[Width / 2], const float (&factor)[2],
                                           unsigned char* tile) {
  const int lane = threadIdx.x % 32;
  unsigned char* const row = tile + (threadIdx.x % 128 / 32 * 16 + lane / 4) * tile_row_bytes + lane % 4 * 4;
#pragma unroll
  for (int side = 0; side < 2; ++side)
#pragma unroll
    for (int n = 0; n < Width / 8; ++n)
      *reinterpret_cast<unsigned*>(row + n / 8 * 64 * tile_row_bytes + side * 8 * tile_row_bytes +
                                   (n % 8 ^ lane / 4) * 16) =
          pack_pair<T>(sums[4 * n + 2 * side] * factor[side], sums[4 * n + 2 * side + 1] * factor[side]);
}

/// Barrier `name` of `threads` threads; 0 is __syncthreads.
__device__ __forceinline__ void meet(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ __forceinline__ void announce(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
/// Barriers of a warpgroup's own, and those where the warpgroups take turns: the one before and the one that waits.
inline constexpr int own_barrier = 1, turn_barrier = 8, turn_threads = 256;

/// The map of a tensor [batch, length, heads, width] in boxes of 64 columns of `rows` rows of a head.
template <class T>
CUtensorMap head_map(const HeadRows<T>& rows, const kernel::AttentionShape& shape, int box_rows) {
  return tensor_map<std::remove_const_t<T>>(rows.data,
                                            {4,
                                             {shape.width, shape.heads, rows.length, shape.batch},
                                             {64, 1, box_rows, 1},
                                             {1, 1, 1, 1},
                                             {1, shape.width, rows.row_stride, rows.length * rows.row_stride}});
}

/// Whether tensor maps can describe the rows of a shape that fits_matrix_units: strides below 2^40 bytes.
inline bool fits_tensor_maps(const kernel::AttentionShape& shape) {
  const index_t rows[] = {shape.q_row, shape.k_row, shape.v_row, shape.out_row};
  const index_t length = std::max(shape.queries, shape.keys), limit = index_t{1} << 38;
  return std::all_of(std::begin(rows), std::end(rows), [&](index_t row) { return row > 0 && row < limit / length; });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
