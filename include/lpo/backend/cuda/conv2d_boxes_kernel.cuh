// SPDX-License-Identifier: MIT
// The kernel behind conv2d_boxes.cuh: one persistent implicit matrix product for the three passes of a convolution.
//
// Launch: a block per multiprocessor, three warpgroups. One thread of the first copies boxes into a ring of stages (bulk
// tensor copies); the other two multiply them, 64 * Blocks rows each, all Columns columns, and release the stage. The next
// tile's first stages arrive while a finished tile is written. Shared memory: the ring, up to the 227 KiB of a block.
// Numerics: products of 16-bit numbers, float sums in the order of the summed index; with splits, each split's sum goes to
// `partial`, and sum_splits_kernel adds them in order. Channels are multiples of 8; other shapes go through columns.
#pragma once

#include <lpo/backend/cuda/warpgroup_product.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// What a launch computes.
///   forward   rows = output pixels, columns = o,  summed over (tap, c)
///   data      rows = input pixels,  columns = c,  summed over (tap, o)
///   weights   rows = (tap, c),      columns = o,  summed over output pixels
enum class ConvPass { forward, data, weights };

/// The run-time shape of a launch. Pixels are those of a grid [grid_n, grid_h, grid_w] that is cut into boxes whose extents
/// are powers of two. Pixel (i, j) reads line i * step + shift_h + direction * tap_h of the gathered images, columns likewise.
struct BoxedConvolution {
  int grid_n, grid_h, grid_w;
  int box_h_log2, box_w_log2, box_n;
  int boxes_n, boxes_h, boxes_w;
  int step, shift_h, shift_w, direction;
  int taps_h, taps_w;
  int first_tap, tap_step_h, tap_step_w;  ///< tap (tap_h, tap_w) multiplies the weights of first_tap + tap_h * tap_step_h + …
  int chunks;                             ///< of 64 gathered channels
  int k_steps, splits;                    ///< steps of 64 of the summed index
  int tiles_m, tiles_n;
  int rows, columns;                      ///< the weights' pass: gathered channels; all passes: width of the result
  // Where pixel (n, i, j) is written: ((n * out_h + i * out_step + out_i) * out_w + j * out_step + out_j) * columns.
  int out_h, out_w, out_step, out_i, out_j;
  index_t elements;                       ///< of the result, the distance of splits in `partial`
};

/// Shared memory of a tile of 128 * Blocks rows and Columns columns.
template <ConvPass pass, int Blocks, int Columns>
struct BoxTile {
  static constexpr TileMajor a_major = pass == ConvPass::weights ? TileMajor::mn : TileMajor::k;
  static constexpr TileMajor b_major = pass == ConvPass::forward ? TileMajor::k : TileMajor::mn;
  static constexpr int panel_bytes = 64 * tile_row_bytes;
  static constexpr int a_bytes = 2 * Blocks * panel_bytes;
  static constexpr int panels = (Columns + 63) / 64;
  static constexpr int b_bytes = b_major == TileMajor::k ? Columns * tile_row_bytes : panels * panel_bytes;
  static constexpr int stage_bytes = a_bytes + b_bytes;
  static constexpr int stages = (226 << 10) / stage_bytes < 8 ? (226 << 10) / stage_bytes : 8;
  static constexpr int shared_bytes = stages * stage_bytes + 1023;  // the swizzle counts from multiples of 1024
};

/// One tile of one split.
struct BoxWork {
  int m, n, split, first_step, last_step;

  __device__ __forceinline__ BoxWork(const BoxedConvolution& p, int item) {
    n = item % p.tiles_n;
    item /= p.tiles_n;
    m = item % p.tiles_m;
    split = item / p.tiles_m;
    first_step = static_cast<int>(static_cast<index_t>(p.k_steps) * split / p.splits);
    last_step = static_cast<int>(static_cast<index_t>(p.k_steps) * (split + 1) / p.splits);
  }
};

/// First pixel of a box.
struct BoxOrigin {
  int n, i, j;

  __device__ __forceinline__ BoxOrigin(const BoxedConvolution& p, int box) {
    j = box % p.boxes_w << p.box_w_log2;
    box /= p.boxes_w;
    i = box % p.boxes_h << p.box_h_log2;
    n = box / p.boxes_h * p.box_n;
  }
};

/// Copies the operands of one step.
template <ConvPass pass, int Blocks, int Columns>
__device__ __forceinline__ void copy_step(const BoxedConvolution& p, const CUtensorMap& a_map, const CUtensorMap& b_map,
                                          const BoxWork& work, int step, unsigned char* stage, std::uint64_t* full) {
  using Tile = BoxTile<pass, Blocks, Columns>;
  unsigned char* b = stage + Tile::a_bytes;
  barrier_expect(full, Tile::stage_bytes);
  if constexpr (pass == ConvPass::weights) {
    const BoxOrigin at(p, step);
    const int last = p.taps_h * p.taps_w * p.chunks - 1;
#pragma unroll
    for (int block = 0; block < 2 * Blocks; ++block) {
      const int wanted = work.m * 2 * Blocks + block, row = wanted < last ? wanted : last;  // past the end: never written
      const int tap = row / p.chunks, tap_h = tap / p.taps_w, tap_w = tap - tap_h * p.taps_w;
      copy_box(stage + block * Tile::panel_bytes, a_map, full, (row - tap * p.chunks) * 64, at.j * p.step + p.shift_w + tap_w,
               at.i * p.step + p.shift_h + tap_h, at.n);
    }
#pragma unroll
    for (int panel = 0; panel < Tile::panels; ++panel)
      copy_box(b + panel * Tile::panel_bytes, b_map, full, work.n * Columns + panel * 64, at.j, at.i, at.n);
  } else {
    const BoxOrigin at(p, work.m);
    const int tap = step / p.chunks, channel = (step - tap * p.chunks) * 64;
    const int tap_h = tap / p.taps_w, tap_w = tap - tap_h * p.taps_w;
    const int weights = p.first_tap + tap_h * p.tap_step_h + tap_w * p.tap_step_w;
    copy_box(stage, a_map, full, channel, at.j * p.step + p.shift_w + p.direction * tap_w,
             at.i * p.step + p.shift_h + p.direction * tap_h, at.n);
    if constexpr (pass == ConvPass::forward) {
      copy_box(b, b_map, full, channel, weights, work.n * Columns);
    } else {
#pragma unroll
      for (int panel = 0; panel < Tile::panels; ++panel)
        copy_box(b + panel * Tile::panel_bytes, b_map, full, work.n * Columns + panel * 64, weights, channel);
    }
  }
}

/// Among the four lanes of a quad that hold columns 2 q, 2 q + 1 of four groups of eight: lane q gets all eight of group q.
__device__ __forceinline__ void gather_quad(float (&values)[8], int quad_lane) {
  const bool odd = (quad_lane & 1) != 0, upper = (quad_lane & 2) != 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int low = i; low < 8; low += 4) {
      const float got = __shfl_xor_sync(0xffffffffu, odd ? values[low] : values[low + 2], 1);
      values[low] = odd ? got : values[low];
      values[low + 2] = odd ? values[low + 2] : got;
    }
#pragma unroll
    for (int low = i; low < 4; low += 2) {
      const float got = __shfl_xor_sync(0xffffffffu, upper ? values[low] : values[low + 4], 2);
      values[low] = upper ? got : values[low];
      values[low + 4] = upper ? values[low + 4] : got;
    }
  }
}

/// Writes a warpgroup's 64 rows of pixels.
template <class T, int Count>
__device__ __forceinline__ void write_pixels(const BoxedConvolution& p, const BoxWork& work, int first_row,
                                             const float (&sums)[Count], const T* bias, T* out, bool accumulate,
                                             float* partial) {
  const int thread = static_cast<int>(threadIdx.x) % 128, quad_lane = thread % 4;
  const BoxOrigin at(p, work.m);
#pragma unroll
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    const int row = first_row + thread / 32 * 16 + thread / 4 % 8 + 8 * half_tile;
    const int j = at.j + (row & ((1 << p.box_w_log2) - 1)), line = row >> p.box_w_log2;
    const int i = at.i + (line & ((1 << p.box_h_log2) - 1)), n = at.n + (line >> p.box_h_log2);
    const bool inside = j < p.grid_w && i < p.grid_h && n < p.grid_n;
    const index_t pixel = (static_cast<index_t>(n) * p.out_h + i * p.out_step + p.out_i) * p.out_w + j * p.out_step + p.out_j;
#pragma unroll
    for (int group = 0; group < Count / 16; ++group) {
      float values[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) values[k] = sums[group * 16 + k / 2 * 4 + half_tile * 2 + k % 2];
      gather_quad(values, quad_lane);
      const int column = work.n * Count * 2 + group * 32 + quad_lane * 8;
      if (!inside || column >= p.columns) continue;
      const index_t to = pixel * p.columns + column;
      if (partial != nullptr) {
        store_numbers<8>(partial + work.split * p.elements + to, values);
        continue;
      }
      float added[8];
      if (bias != nullptr) {
        load_numbers<8>(bias + column, added);
#pragma unroll
        for (int k = 0; k < 8; ++k) values[k] += added[k];
      }
      if (accumulate) {
        load_numbers<8>(out + to, added);
#pragma unroll
        for (int k = 0; k < 8; ++k) values[k] += added[k];
      }
      store_numbers<8>(out + to, values);
    }
  }
}

/// Writes a warpgroup's 64 rows of one tap's channels; the result is [columns, taps, rows].
template <int Count>
__device__ __forceinline__ void write_weights(const BoxedConvolution& p, const BoxWork& work, int block,
                                              const float (&sums)[Count], float* partial) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int taps = p.taps_h * p.taps_w, tap = block / p.chunks;
  if (tap >= taps) return;
#pragma unroll
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    const int channel = (block - tap * p.chunks) * 64 + thread / 32 * 16 + thread / 4 % 8 + 8 * half_tile;
    if (channel >= p.rows) continue;
    float* to = partial + work.split * p.elements + tap * p.rows + channel;
#pragma unroll
    for (int i = 0; i < Count / 2; ++i) {
      const int column = work.n * Count * 2 + i / 2 * 8 + thread % 4 * 2 + i % 2;
      if (column < p.columns) to[static_cast<index_t>(column) * taps * p.rows] = sums[i / 2 * 4 + half_tile * 2 + i % 2];
    }
  }
}

/// `partial` null: out (+)= product + bias. Otherwise partial [splits, elements] = the splits' products.
template <class T, ConvPass pass, int Blocks, int Columns>
__global__ void __launch_bounds__(384, 1)
    conv2d_boxes_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                        const __grid_constant__ BoxedConvolution p, const T* bias, T* out, bool accumulate,
                        float* partial) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tile = BoxTile<pass, Blocks, Columns>;
  constexpr int consumer_warps = 8;
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
  const int items = p.tiles_m * p.tiles_n * p.splits;
  const int group = static_cast<int>(threadIdx.x) / 128;
  int stage = 0;
  unsigned parity = 0;
  const auto advance = [&] {
    if (++stage == Tile::stages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if (group == 0) {
    give_registers<40>();
    if (threadIdx.x != 0) return;
    for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
      const BoxWork work(p, item);
      for (int step = work.first_step; step < work.last_step; ++step) {
        barrier_wait(&empty[stage], parity ^ 1);
        copy_step<pass, Blocks, Columns>(p, a_map, b_map, work, step, ring + stage * Tile::stage_bytes, &full[stage]);
        advance();
      }
    }
  } else {
    take_registers<232>();
    const bool is_first_lane = threadIdx.x % 32 == 0;
    const int first_block = (group - 1) * Blocks;
    for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
      const BoxWork work(p, item);
      float sums[Blocks][Columns / 2];
#pragma unroll
      for (int block = 0; block < Blocks; ++block)
#pragma unroll
        for (int i = 0; i < Columns / 2; ++i) sums[block][i] = 0.0f;
      int previous = -1;
      for (int step = work.first_step; step < work.last_step; ++step) {
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
#pragma unroll
      for (int block = 0; block < Blocks; ++block) {
        if constexpr (pass == ConvPass::weights)
          write_weights(p, work, work.m * 2 * Blocks + first_block + block, sums[block], partial);
        else
          write_pixels(p, work, (first_block + block) * 64, sums[block], bias, out, accumulate, partial);
      }
    }
  }
#endif
}

/// out (+)= sum over splits of partial [splits, elements], in order, + bias [columns]; eight elements a thread.
template <class T>
__global__ void sum_splits_kernel(const float* partial, int splits, index_t elements, int columns, const T* bias, T* out,
                                  bool accumulate) {
  const index_t at = (static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (at >= elements) return;
  float sum[8], value[8];
  load_numbers<8>(partial + at, sum);
  for (int split = 1; split < splits; ++split) {
    load_numbers<8>(partial + split * elements + at, value);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += value[i];
  }
  if (bias != nullptr) {
    load_numbers<8>(bias + at % columns, value);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += value[i];
  }
  if (accumulate) {
    load_numbers<8>(out + at, value);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += value[i];
  }
  store_numbers<8>(out + at, sum);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
