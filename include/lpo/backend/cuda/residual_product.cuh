// SPDX-License-Identifier: MIT
// The projection onto a residual of bfloat16 and half on Hopper GPUs: bias, residual and low-rank term in one kernel.
//
//   y = x W^T + b + addend + inner U^T     x [rows, in], W [out, in], inner [rows, rank], U [out, rank]
//
// Launch: at most a block per multiprocessor, three warpgroups. One thread of the first copies 256 rows of x and Columns
// rows of W, 64 of the summed index at a time, into a ring of stages (bulk tensor copies), then those of inner and U;
// the other two multiply 128 rows each, and write.
// Memory: what it is made of is read once, y written once. cuBLASLt takes about twice as long where a bias and an addend
// meet (bench/NOTES.md).
// Numerics: float sums in the order of the summed index, then bias, then addend, rounded once.
// Not handled: other storage, `in`, `out` or a rank that are no multiples of 8; kernel::Gemm does them.
#pragma once

#include <algorithm>
#include <limits>

#include <lpo/backend/cuda/conv2d_boxes_tile.cuh>
#include <lpo/kernel/residual_product.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

template <class T>
struct ResidualArguments {
  int rows, out, k_steps, rank_steps, tiles_n, tiles;
  const T *bias, *addend;
  T* y;
};

template <int Columns>
struct ResidualTile {
  static constexpr int rows = 256, blocks = 2;  ///< of 64 rows, for each of two warpgroups
  static constexpr int a_bytes = rows * tile_row_bytes, b_bytes = Columns * tile_row_bytes;
  static constexpr int stage_bytes = a_bytes + b_bytes;
  static constexpr int stages = (226 << 10) / stage_bytes;
  static constexpr int shared_bytes = stages * stage_bytes + 1023;  // the swizzle counts from multiples of 1024
};

/// Columns first_column .. of 64 rows from first_row on, of which the caller's warpgroup holds the sums.
template <class T, int Count>
__device__ __forceinline__ void write_residual(const ResidualArguments<T>& p, int first_row, int first_column,
                                               const float (&sums)[Count]) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
#pragma unroll
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    const int row = first_row + thread / 32 * 16 + thread / 4 % 8 + 8 * half_tile;
#pragma unroll
    for (int group = 0; group < Count / 16; ++group) {  // 32 columns: lane i of four gets columns 8 i to 8 i + 7
      float even[4], odd[4], values[8], added[8];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        even[k] = sums[group * 16 + k * 4 + half_tile * 2];
        odd[k] = sums[group * 16 + k * 4 + half_tile * 2 + 1];
      }
      transpose_quad(even);
      transpose_quad(odd);
      const int column = first_column + group * 32 + thread % 4 * 8;
      if (row >= p.rows || column >= p.out) continue;
#pragma unroll
      for (int k = 0; k < 8; ++k) values[k] = k % 2 == 0 ? even[k / 2] : odd[k / 2];
      if (p.bias != nullptr) {
        load_numbers<8>(p.bias + column, added);
#pragma unroll
        for (int k = 0; k < 8; ++k) values[k] += added[k];
      }
      const index_t place = static_cast<index_t>(row) * p.out + column;
      load_numbers<8>(p.addend + place, added);
#pragma unroll
      for (int k = 0; k < 8; ++k) values[k] += added[k];
      store_numbers<8>(p.y + place, values);
    }
  }
}

template <class T, int Columns>
__global__ void __launch_bounds__(384, 1)
    residual_product_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
                            const __grid_constant__ CUtensorMap inner_map, const __grid_constant__ CUtensorMap up_map,
                            const __grid_constant__ ResidualArguments<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tile = ResidualTile<Columns>;
  constexpr int consumer_warps = 8, count = Columns / 2, panel_bytes = 64 * tile_row_bytes;
  __shared__ std::uint64_t full[Tile::stages], empty[Tile::stages];
  extern __shared__ unsigned char ring_memory[];
  unsigned char* ring = ring_memory + (1024 - shared_address(ring_memory) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tile::stages; ++stage) {
      barrier_init(&full[stage], 1);
      barrier_init(&empty[stage], consumer_warps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  int stage = 0;
  unsigned parity = 0;
  const auto advance = [&] {
    if (++stage == Tile::stages) {
      stage = 0;
      parity ^= 1;
    }
  };
  const int steps = p.k_steps + p.rank_steps;
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 0) {
    give_registers<56>();  // 128 * 56 + 256 * 224 = 384 * 168: what the launch got; waiting for more would never end
    if (threadIdx.x != 0) return;
    for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += static_cast<int>(gridDim.x)) {
      const int row = tile / p.tiles_n * Tile::rows, column = tile % p.tiles_n * Columns;
      for (int step = 0; step < steps; ++step) {
        unsigned char* const to = ring + stage * Tile::stage_bytes;
        barrier_wait(&empty[stage], parity ^ 1);
        barrier_expect(&full[stage], Tile::stage_bytes);
        if (step < p.k_steps) {
          copy_box(to, x_map, &full[stage], step * 64, row, 0);
          copy_box(to + Tile::a_bytes, weight_map, &full[stage], step * 64, column, 0);
        } else {
          copy_box(to, inner_map, &full[stage], (step - p.k_steps) * 64, row, 0);
          copy_box(to + Tile::a_bytes, up_map, &full[stage], (step - p.k_steps) * 64, column, 0);
        }
        advance();
      }
    }
  } else {
    take_registers<224>();
    const bool is_first_lane = threadIdx.x % 32 == 0;
    const int first_block = (group - 1) * Tile::blocks;
    for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += static_cast<int>(gridDim.x)) {
      float sums[Tile::blocks][count];
#pragma unroll
      for (int block = 0; block < Tile::blocks; ++block)
#pragma unroll
        for (int i = 0; i < count; ++i) sums[block][i] = 0.0f;
      int previous = -1;
      for (int step = 0; step < steps; ++step) {
        const unsigned char* const from = ring + stage * Tile::stage_bytes;
        const std::uint64_t a = tile_descriptor<TileMajor::k>(from + first_block * panel_bytes, panel_bytes);
        const std::uint64_t b = tile_descriptor<TileMajor::k>(from + Tile::a_bytes, panel_bytes);
        barrier_wait(&full[stage], parity);
        warpgroup_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int block = 0; block < Tile::blocks; ++block)
            warpgroup_product<T, TileMajor::k, TileMajor::k>(
                sums[block], a + k * tile_advance<TileMajor::k> + block * (panel_bytes >> 4),
                b + k * tile_advance<TileMajor::k>);
        warpgroup_commit();
        warpgroup_wait<1>();  // the products of the step before are done with their stage
        if (previous >= 0 && is_first_lane) barrier_arrive(&empty[previous]);
        previous = stage;
        advance();
      }
      warpgroup_wait<0>();
      if (previous >= 0 && is_first_lane) barrier_arrive(&empty[previous]);
#pragma unroll
      for (int block = 0; block < Tile::blocks; ++block)
        write_residual(p, tile / p.tiles_n * Tile::rows + (first_block + block) * 64, tile % p.tiles_n * Columns,
                       sums[block]);
    }
  }
#endif
}

template <class T, int Columns>
void launch_residual_product(Context<Cuda>& context, const kernel::ResidualProductParams<T>& p) {
  using Tile = ResidualTile<Columns>;
  const auto kernel = residual_product_kernel<T, Columns>;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::shared_bytes),
             "residual_product_kernel");
  const auto pieces = [](index_t extent, index_t piece) { return static_cast<int>((extent + piece - 1) / piece); };
  const auto matrix = [](const T* data, index_t rows, index_t columns, index_t row_stride, int box_rows) {
    TensorBoxes boxes{3, {columns, rows, 1}, {64, box_rows, 1}, {1, 1, 1}};
    boxes.stride[1] = row_stride;
    return tensor_map(data, boxes);
  };
  ResidualArguments<T> arguments{};
  arguments.rows = static_cast<int>(p.rows), arguments.out = static_cast<int>(p.out);
  arguments.k_steps = pieces(p.in, 64), arguments.rank_steps = pieces(p.rank, 64);
  arguments.tiles_n = pieces(p.out, Columns);
  arguments.tiles = arguments.tiles_n * pieces(p.rows, Tile::rows);
  arguments.bias = p.bias, arguments.addend = p.addend, arguments.y = p.y;
  const CUtensorMap x = matrix(p.x, p.rows, p.in, p.x_row, Tile::rows);
  const CUtensorMap weight = matrix(p.weight, p.out, p.in, p.in, Columns);
  const bool adapted = p.rank > 0;
  const CUtensorMap inner = adapted ? matrix(p.inner, p.rows, p.rank, p.rank, Tile::rows) : x;
  const CUtensorMap up = adapted ? matrix(p.up, p.out, p.rank, p.rank, Columns) : weight;
  const auto blocks = static_cast<unsigned>(std::min(arguments.tiles, context.multiprocessors()));
  kernel<<<blocks, 384, Tile::shared_bytes, context.stream()>>>(x, weight, inner, up, arguments);
  context.check_launch("residual_product_kernel", [&] {
    return message("residual_product_kernel ", p.rows, " x ", p.in, " x ", p.out, " rank ", p.rank);
  });
}

}  // namespace detail

namespace kernel {

template <>
struct ResidualProduct<Cuda> {
  template <class T>
  static bool can_run(Context<Cuda>& context, const ResidualProductParams<T>& p) {
    if constexpr (sizeof(T) != 2) {
      return false;
    } else {
      constexpr index_t largest = std::numeric_limits<int>::max() / 512;  // tile numbers and rows of tiles are ints
      // Fewer tiles than multiprocessors would leave some idle; cuBLASLt splits the sums there.
      return p.rows > 0 && p.in > 0 && p.in % 8 == 0 && p.out % 8 == 0 && p.x_row % 8 == 0 && p.addend != nullptr &&
             std::max({p.rows, p.in, p.out}) < largest &&
             (p.rows + 255) / 256 * ((p.out + 159) / 160) >= context.multiprocessors() / 2 &&
             detail::common_alignment(p.x, p.weight, p.bias, p.addend) == 16 &&
             detail::has_hopper_body(detail::residual_product_kernel<T, 128>);
    }
  }

  template <class T>
  static void run(Context<Cuda>& context, const ResidualProductParams<T>& p) {
    if constexpr (sizeof(T) == 2) {
      // The width that leaves the fewest columns to the busiest multiprocessor.
      const auto busiest = [&](index_t columns) {
        const index_t tiles = (p.rows + 255) / 256 * ((p.out + columns - 1) / columns);
        return (tiles + context.multiprocessors() - 1) / context.multiprocessors() * columns;
      };
      if (busiest(160) <= busiest(128))
        detail::launch_residual_product<T, 160>(context, p);
      else
        detail::launch_residual_product<T, 128>(context, p);
    }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
