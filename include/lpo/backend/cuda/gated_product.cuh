// SPDX-License-Identifier: MIT
// The product with a gate of bfloat16 and half on Hopper GPUs: values and gates of a tile meet in registers.
//
//   (value, gate) = x W^T + b, out = value * gelu(gate)     x [rows, in], W [2 hidden, in], out [rows, hidden]
//
// Launch: at most a block per multiprocessor, three warpgroups. One thread of the first copies tiles of 64 of the summed
// index into a ring of stages (bulk tensor copies): 128 rows of x, 80 rows of W for the values and as many for the
// gates. The other two warpgroups take the block's tiles in turns: while one multiplies, the other, whose sums stay in
// registers, gates and writes; results go through shared memory, so that rows are written in pieces of 16 bytes.
// Memory: without `both`, only out is written: a third of what a product and a statement move.
// Numerics: float sums in the order of the summed index; value and gate are rounded to T before they meet; gelu within
// 2.6e-5 of its exact value, relatively, for gates above -5, within 4e-5 above -12.9, zero below. The same bits with and
// without `both`.
// Not handled: other storage, `in` or `hidden` that are no multiples of 8; the caller multiplies and gates apart.
#pragma once

#include <algorithm>
#include <limits>

#include <lpo/backend/cuda/async_copy.cuh>
#include <lpo/backend/cuda/conv2d_boxes_tile.cuh>
#include <lpo/kernel/gated_product.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

template <class T>
struct GatedArguments {
  int rows, hidden, k_steps, tiles_m, tiles_n, tiles;
  int band;  ///< rows of tiles that are walked together, column by column
  const T* bias;
  T *both, *out;
};

/// A tile's 128 rows of x beside 80 values and 80 gates: with 160 columns to an instruction, a warpgroup's two blocks of
/// 64 rows take 160 sums of a thread.
struct GatedTile {
  static constexpr int rows = 128, columns = 80;
  static constexpr int a_bytes = rows * tile_row_bytes, half_bytes = columns * tile_row_bytes;
  static constexpr int stage_bytes = a_bytes + 2 * half_bytes;
  static constexpr int staged_row_bytes = 2 * columns + 16;  // the 16 keep eight rows out of each other's banks
  static constexpr int staged_warp_bytes = 16 * staged_row_bytes;
  static constexpr int bias_bytes = 2 * 2 * columns;  // a warp's copy: of values, then of gates
  static constexpr int written_bytes = 8 * (staged_warp_bytes + bias_bytes);
  static constexpr int stages = ((226 << 10) - written_bytes) / stage_bytes;
  static constexpr int shared_bytes = stages * stage_bytes + written_bytes + 1023;  // the swizzle counts from multiples of 1024

  int row, column;  ///< first ones

  /// The tile'th of a launch. A band's columns follow each other, so that tiles of one time read few rows of W.
  template <class T>
  __device__ __forceinline__ GatedTile(const GatedArguments<T>& p, int tile) {
    const int first = tile / (p.band * p.tiles_n) * p.band, height = min(p.band, p.tiles_m - first);
    const int within = tile - first * p.tiles_n;
    row = (first + within % height) * rows;
    column = within / height * columns;
  }
};

/// x Phi(x) for 16-bit results. Phi(-a) = 2^R(a), R the polynomial of degree 9 with the least largest error on [0, 13.5].
__device__ __forceinline__ float gated_gelu(float x) {
  const float a = fminf(fabsf(x), 13.5f);  // beyond, the tail is zero in float
  float r = fmaf(-1.795565700e-09f, a, 1.330991149e-07f);
  r = fmaf(r, a, -4.332629759e-06f);
  r = fmaf(r, a, 8.195412197e-05f);
  r = fmaf(r, a, -1.008289979e-03f);
  r = fmaf(r, a, 8.611596708e-03f);
  r = fmaf(r, a, -5.382068494e-02f);
  r = fmaf(r, a, -4.589589917e-01f);
  r = fmaf(r, a, -1.150901491e+00f);
  r = fmaf(r, a, -1.000035996e+00f);
  float positive;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(positive) : "f"(x));  // fmaxf would lose NaN
  return fmaf(-a, exp2_approximate(r), positive);
}

/// Two numbers of T in one register.
template <class T>
__device__ __forceinline__ unsigned rounded_pair(float low, float high) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
}

/// Stores four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8, and holds columns
/// 2 (l % 4) + {0, 1} of row l / 4 of each.
__device__ __forceinline__ void store_matrices(unsigned address, const unsigned (&fragment)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(fragment[0]),
               "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
}

/// Starts copies of a tile's biases, zeros where there is none, to the calling warp's shared memory. On demand, each group of
/// columns would wait for device memory anew.
template <class T>
__device__ __forceinline__ void fetch_bias(const GatedArguments<T>& p, unsigned char* to, int first_column) {
  constexpr int pieces = GatedTile::columns / 8;  // of 16 bytes
  const int lane = static_cast<int>(threadIdx.x) % 32, column = first_column + lane % pieces * 8;
  const bool there = p.bias != nullptr && column < p.hidden;
  if (lane < 2 * pieces)
    copy_async<16>(shared_address(to + lane * 16), there ? p.bias + (lane / pieces * p.hidden + column) : p.out, there);
}

enum class GatedPart { value, gate, out };

/// Writes one part of a tile's columns in 16 rows from first_row on to `to`, whose rows are row_numbers apart. The caller's
/// warp holds their sums, values before gates; `staged` and `bias` are shared memory of its own.
template <GatedPart part, class T>
__device__ __forceinline__ void write_part(const GatedArguments<T>& p, unsigned char* staged, const unsigned char* bias, int first_row,
                                           int first_column, const float (&sums)[GatedTile::columns], T* to, int row_numbers) {
  constexpr int row_bytes = GatedTile::staged_row_bytes, gate0 = GatedTile::columns / 2;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned at = shared_address(staged + lane % 16 * row_bytes + lane / 16 * 16);
  __syncwarp();  // what the warp staged before has been read
#pragma unroll
  for (int group = 0; group < GatedTile::columns / 16; ++group) {
    unsigned result[4];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const unsigned char* const own_bias = bias + (group * 16 + k * 8 + lane % 4 * 2) * 2;
      const unsigned value_bias = *reinterpret_cast<const unsigned*>(own_bias);
      const unsigned gate_bias = *reinterpret_cast<const unsigned*>(own_bias + 2 * GatedTile::columns);
      const auto rounded = [&](int i, unsigned added) {
        return rounded_pair<T>(sums[i] + widen_half_of<T>(added, 0), sums[i + 1] + widen_half_of<T>(added, 1));
      };
#pragma unroll
      for (int half_tile = 0; half_tile < 2; ++half_tile) {
        const int i = group * 8 + k * 4 + half_tile * 2;
        if constexpr (part == GatedPart::value) {
          result[2 * k + half_tile] = rounded(i, value_bias);
        } else if constexpr (part == GatedPart::gate) {
          result[2 * k + half_tile] = rounded(gate0 + i, gate_bias);
        } else {
          const unsigned value = rounded(i, value_bias), gate = rounded(gate0 + i, gate_bias);
          result[2 * k + half_tile] = rounded_pair<T>(widen_half_of<T>(value, 0) * gated_gelu(widen_half_of<T>(gate, 0)),
                                                      widen_half_of<T>(value, 1) * gated_gelu(widen_half_of<T>(gate, 1)));
        }
      }
    }
    store_matrices(at + group * 32, result);
  }
  __syncwarp();
  constexpr int pieces = GatedTile::columns / 8, rows_at_once = 32 / pieces;  // of 16 bytes; two lanes are left over
  const int own_row = lane / pieces, own_column = lane % pieces * 8;
  const unsigned char* from = staged + own_row * row_bytes + own_column * 2;
  T* place = to + static_cast<index_t>(first_row + own_row) * row_numbers + first_column + own_column;
  const bool writes = own_row < rows_at_once && first_column + own_column < p.hidden;
  const int rows_left = writes ? min(16, p.rows - first_row) - own_row : 0;
#pragma unroll
  for (int row = 0; row < 16; row += rows_at_once) {
    if (row < rows_left) *reinterpret_cast<uint4*>(place) = *reinterpret_cast<const uint4*>(from + row * row_bytes);
    place += rows_at_once * static_cast<index_t>(row_numbers);
  }
}

template <class T, bool Both>
__global__ void __launch_bounds__(384, 1)
    gated_product_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
                         const __grid_constant__ GatedArguments<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tile = GatedTile;
  constexpr int warps = 4;  // of a warpgroup
  __shared__ std::uint64_t full[Tile::stages], empty[Tile::stages], turn[2];
  extern __shared__ unsigned char ring_memory[];
  unsigned char* const ring = ring_memory + (1024 - shared_address(ring_memory) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tile::stages; ++stage) {
      barrier_init(&full[stage], 1);
      barrier_init(&empty[stage], warps);
    }
    barrier_init(&turn[0], warps);
    barrier_init(&turn[1], warps);
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
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int first_tile = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  if (group == 0) {
    give_registers<24>();  // 128 * 24 + 256 * 240 = 384 * 168: what the launch got; waiting for more would never end
    if (threadIdx.x != 0) return;
    for (int tile = first_tile; tile < p.tiles; tile += blocks) {
      const Tile at(p, tile);
      for (int step = 0; step < p.k_steps; ++step) {
        unsigned char* const to = ring + stage * Tile::stage_bytes;
        barrier_wait(&empty[stage], parity ^ 1);
        barrier_expect(&full[stage], Tile::stage_bytes);
        copy_box(to, x_map, &full[stage], step * 64, at.row, 0);
        copy_box(to + Tile::a_bytes, weight_map, &full[stage], step * 64, at.column, 0);
        copy_box(to + Tile::a_bytes + Tile::half_bytes, weight_map, &full[stage], step * 64, p.hidden + at.column, 0);
        advance();
      }
    }
  } else {
    take_registers<240>();
    const int own = group - 1, warp = static_cast<int>(threadIdx.x) % 128 / 32;
    const bool is_first_lane = threadIdx.x % 32 == 0;
    constexpr int panel_bytes = 64 * tile_row_bytes;
    unsigned char* const staged = ring + Tile::stages * Tile::stage_bytes + (own * warps + warp) * Tile::staged_warp_bytes;
    unsigned char* const bias = ring + Tile::stages * Tile::stage_bytes + 8 * Tile::staged_warp_bytes + (own * warps + warp) * Tile::bias_bytes;
    const auto pass_tile = [&] {  // the stages of a tile of the other warpgroup
      stage += p.k_steps;
      parity ^= static_cast<unsigned>(stage / Tile::stages) & 1u;
      stage %= Tile::stages;
    };
    // A turn ends when all stages of its tile have arrived: what the next one waits for is never more than a phase ahead, and
    // parities are unambiguous.
    unsigned turn_parity = 0;
    if (own == 1) {
      if (is_first_lane) barrier_arrive(&turn[0]);
      pass_tile();
    }
    for (int tile = first_tile + own * blocks; tile < p.tiles; tile += 2 * blocks) {
      const Tile at(p, tile);
      fetch_bias(p, bias, at.column);
      float sums[2][Tile::columns];  // of 64 rows: values, then gates
      barrier_wait(&turn[own], turn_parity);
      turn_parity ^= 1;
      int previous = -1;
      for (int step = 0; step < p.k_steps; ++step) {
        const unsigned char* const from = ring + stage * Tile::stage_bytes;
        const std::uint64_t a[2] = {tile_descriptor<TileMajor::k>(from, panel_bytes),
                                    tile_descriptor<TileMajor::k>(from + panel_bytes, panel_bytes)};
        const std::uint64_t b = tile_descriptor<TileMajor::k>(from + Tile::a_bytes, panel_bytes);
        barrier_wait(&full[stage], parity);
        warpgroup_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int block = 0; block < 2; ++block)
            warpgroup_product<T, TileMajor::k, TileMajor::k>(sums[block], a[block] + k * tile_advance<TileMajor::k>,
                                                             b + k * tile_advance<TileMajor::k>, k > 0 || step > 0);
        }
        warpgroup_commit();
        warpgroup_wait<1>();  // the products of the step before are done with their stage
        if (previous >= 0 && is_first_lane) barrier_arrive(&empty[previous]);
        previous = stage;
        advance();
      }
      if (is_first_lane) barrier_arrive(&turn[1 - own]);  // the other's products may queue behind these
      warpgroup_wait<0>();
      if (previous >= 0 && is_first_lane) barrier_arrive(&empty[previous]);
      pass_tile();
      wait_for_copies();
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const int row = at.row + 64 * block + 16 * warp;
        if constexpr (Both) {
          write_part<GatedPart::value>(p, staged, bias, row, at.column, sums[block], p.both, 2 * p.hidden);
          write_part<GatedPart::gate>(p, staged, bias, row, at.column, sums[block], p.both + p.hidden, 2 * p.hidden);
        }
        write_part<GatedPart::out>(p, staged, bias, row, at.column, sums[block], p.out, p.hidden);
      }
    }
  }
#endif
}

/// Rows of tiles that are walked together: a round of tiles then reads less of W for each row, and little more of x. On an
/// H100 4 to 16 took equal times, 1 up to 6 % more and all up to 66 % more.
inline int gated_band(int tiles_m) { return std::min(tiles_m, 8); }

template <class T, bool Both>
void launch_gated_product(Context<Cuda>& context, const kernel::GatedProductParams<T>& p) {
  using Tile = GatedTile;
  const auto kernel = gated_product_kernel<T, Both>;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::shared_bytes),
             "gated_product_kernel");
  const auto pieces = [](index_t extent, index_t piece) { return static_cast<int>((extent + piece - 1) / piece); };
  GatedArguments<T> arguments{};
  arguments.rows = static_cast<int>(p.rows), arguments.hidden = static_cast<int>(p.hidden);
  arguments.k_steps = pieces(p.in, 64);
  arguments.tiles_m = pieces(p.rows, Tile::rows), arguments.tiles_n = pieces(p.hidden, Tile::columns);
  arguments.tiles = arguments.tiles_m * arguments.tiles_n;
  arguments.band = gated_band(arguments.tiles_m);
  arguments.bias = p.bias, arguments.both = p.both, arguments.out = p.out;
  TensorBoxes x{3, {p.in, p.rows, 1}, {64, Tile::rows, 1}, {1, 1, 1}};
  x.stride[1] = p.x_row;
  const CUtensorMap x_map = tensor_map(p.x, x);
  const CUtensorMap weight_map = tensor_map(p.weight, {3, {p.in, 2 * p.hidden, 1}, {64, Tile::columns, 1}, {1, 1, 1}});
  const auto blocks = static_cast<unsigned>(std::min(arguments.tiles, context.multiprocessors()));
  kernel<<<blocks, 384, Tile::shared_bytes, context.stream()>>>(x_map, weight_map, arguments);
  context.check_launch("gated_product_kernel");
}

}  // namespace detail

namespace kernel {

template <>
struct GatedProduct<Cuda> {
  template <class T>
  static bool can_run(Context<Cuda>&, const GatedProductParams<T>& p) {
    if constexpr (sizeof(T) != 2) {
      return false;
    } else {
      constexpr index_t largest = std::numeric_limits<int>::max() / 512;  // tile numbers and rows of tiles are ints
      return p.rows > 0 && p.hidden > 0 && p.in > 0 && p.in % 8 == 0 && p.hidden % 8 == 0 && p.x_row % 8 == 0 &&
             std::max({p.rows, p.in, p.hidden}) < largest && p.rows / 128 * (p.hidden / 80) < largest &&
             detail::common_alignment(p.x, p.weight, p.bias) == 16 &&
             detail::has_hopper_body(detail::gated_product_kernel<T, false>);
    }
  }

  template <class T>
  static void run(Context<Cuda>& context, const GatedProductParams<T>& p) {
    if constexpr (sizeof(T) == 2) {
      if (p.both != nullptr)
        detail::launch_gated_product<T, true>(context, p);
      else
        detail::launch_gated_product<T, false>(context, p);
    }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
