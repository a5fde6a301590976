// SPDX-License-Identifier: MIT
// The kernels behind conv2d_boxes.cuh: one persistent implicit matrix product for the three passes of a convolution.
//
// Launch: at most a block per multiprocessor, three warpgroups. One thread of the first copies boxes into a ring of
// stages (bulk tensor copies); the other two multiply them, 64 * Blocks rows each, all Columns columns, and release the
// stage. The next tile's first stages arrive while a finished tile is written.
// Memory: the ring takes up to the 227 KiB of shared memory of a block.
// Numerics: products of 16-bit numbers, float sums in the order of the summed index. The steps of the tiles that do not
// fill the device evenly are dealt out to all blocks, which leave float sums in `parts` for join_parts_kernel to add in
// order: the same bits in every run on the same kind of device.
// Not handled: channels that are no multiples of 8, other storage; conv2d_columns.cuh does.
#pragma once

#include <lpo/backend/cuda/conv2d_boxes_tile.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Elements of a part (BoxParts): [64-row block, sum, thread].
template <int Blocks, int Count>
inline constexpr index_t part_elements = index_t{256} * Blocks* Count;

template <class T, ConvPass pass, int Blocks, int Columns>
__global__ void __launch_bounds__(384, 1)
    conv2d_boxes_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                        const __grid_constant__ BoxedConvolution p, const T* bias, T* out, bool accumulate,
                        float* parts) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tile = BoxTile<pass, Blocks, Columns>;
  constexpr int consumer_warps = 8, count = Columns / 2;
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
  BoxSchedule<pass> schedule(p, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
  BoxWork work;
  int stage = 0;
  unsigned parity = 0;
  const auto advance = [&] {
    if (++stage == Tile::stages) {
      stage = 0;
      parity ^= 1;
    }
  };
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 0) {
    give_registers<56>();  // 128 * 56 + 256 * 224 = 384 * 168: what the launch got; waiting for more would never end
    if (threadIdx.x != 0) return;
    while (schedule.next(p, work)) {
      BoxCopies<pass, Blocks, Columns> copies(p, work);
      for (int step = work.first; step < work.last; ++step) {
        barrier_wait(&empty[stage], parity ^ 1);
        copies.next(p, a_map, b_map, ring + stage * Tile::stage_bytes, &full[stage]);
        advance();
      }
    }
  } else {
    take_registers<224>();
    const bool is_first_lane = threadIdx.x % 32 == 0;
    const int first_block = (group - 1) * Blocks;
    while (schedule.next(p, work)) {
      float sums[Blocks][count];
#pragma unroll
      for (int block = 0; block < Blocks; ++block)
#pragma unroll
        for (int i = 0; i < count; ++i) sums[block][i] = 0.0f;
      int previous = -1;
      for (int step = work.first; step < work.last; ++step) {
        const unsigned char* a = ring + stage * Tile::stage_bytes;
        const std::uint64_t b = tile_descriptor<Tile::b_major>(a + Tile::a_bytes, Tile::panel_bytes);
        const std::uint64_t a0 = tile_descriptor<Tile::a_major>(a + first_block * Tile::panel_bytes, Tile::panel_bytes);
        barrier_wait(&full[stage], parity);
        warpgroup_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int block = 0; block < Blocks; ++block)
            warpgroup_product<T, Tile::a_major, Tile::b_major>(
                sums[block], a0 + k * tile_advance<Tile::a_major> + block * (Tile::panel_bytes >> 4),
                b + k * tile_advance<Tile::b_major>);
        warpgroup_commit();
        warpgroup_wait<1>();  // the products of the step before are done with their stage
        if (previous >= 0 && is_first_lane) barrier_arrive(&empty[previous]);
        previous = stage;
        advance();
      }
      warpgroup_wait<0>();
      if (previous >= 0 && is_first_lane) barrier_arrive(&empty[previous]);
      if (work.is_whole()) {
#pragma unroll
        for (int block = 0; block < Blocks; ++block)
          write_block<T, pass, Blocks, Columns>(p, work.tile, first_block + block, 0, sums[block], bias, out,
                                                accumulate);
      } else {
        const index_t part = 2 * static_cast<index_t>(blockIdx.x) + (work.first == 0);
        float* to = parts + part * part_elements<Blocks, count> + first_block * count * 128 + threadIdx.x % 128;
#pragma unroll
        for (int block = 0; block < Blocks; ++block)
#pragma unroll
          for (int i = 0; i < count; ++i) to[(block * count + i) * 128] = sums[block][i];
      }
    }
  }
#endif
}

/// Joins the parts of the dealt tiles that `blocks` blocks of conv2d_boxes_kernel left. Block (row block, dealt tile,
/// group of 32 columns) of 128 threads, which hold what a warpgroup holds there.
template <class T, ConvPass pass, int Blocks, int Columns>
__global__ void __launch_bounds__(128) join_parts_kernel(const __grid_constant__ BoxedConvolution p, int blocks,
                                                         const float* parts, const T* bias, T* out, bool accumulate) {
  constexpr int count = Columns / 2, joined = 16;
  const int tile = p.whole_tiles + static_cast<int>(blockIdx.y);
  BoxParts<pass> tile_parts(p, tile, blocks);
  if (tile_parts.is_one_blocks()) return;
  const index_t offset = (blockIdx.x * count + blockIdx.z * joined) * 128 + threadIdx.x;
  float sums[joined] = {};
  index_t part = 0;
  while (tile_parts.next(p, part)) {
    const float* from = parts + part * part_elements<Blocks, count> + offset;
#pragma unroll
    for (int i = 0; i < joined; ++i) sums[i] += from[i * 128];
  }
  write_block<T, pass, Blocks, Columns>(p, tile, static_cast<int>(blockIdx.x),
                                        static_cast<int>(blockIdx.z) * 2 * joined, sums, bias, out, accumulate);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
