// SPDX-License-Identifier: MIT
// The product with a gate of bfloat16 and half on Hopper GPUs: values and gates of a tile meet in registers.
//
//   (value, gate) = x W^T + b, out = value * gelu(gate)     x [rows, in], W [2 hidden, in], out [rows, hidden]
//
// Launch: at most a block per multiprocessor, three warpgroups. One thread of the first copies tiles of 64 of the
// summed index into a ring of stages (bulk tensor copies): 128 rows of x, Columns rows of W for the values and as many
// for the gates. The other two warpgroups multiply 64 rows each, twice, and write.
// Memory: without `both`, only out is written: a third of what a product and a statement move.
// Numerics: float sums in the order of the summed index; value and gate are rounded to T before they meet; gelu within
// 3.3e-5 of its exact value, relatively. The same bits with and without `both`.
// Not handled: other storage, `in` or `hidden` that are no multiples of 8; the caller multiplies and gates apart.
#pragma once

#include <algorithm>
#include <limits>

#include <lpo/backend/cuda/conv2d_boxes_tile.cuh>
#include <lpo/kernel/gated_product.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

template <class T>
struct GatedArguments {
  int rows, hidden, k_steps, tiles_n, tiles;
  const T* bias;
  T *both, *out;
};

template <int Columns>
struct GatedTile {
  static constexpr int rows = 128;
  static constexpr int a_bytes = rows * tile_row_bytes, half_bytes = Columns * tile_row_bytes;
  static constexpr int stage_bytes = a_bytes + 2 * half_bytes;
  static constexpr int stages = (226 << 10) / stage_bytes;
  static constexpr int shared_bytes = stages * stage_bytes + 1023;  // the swizzle counts from multiples of 1024
};

/// x Phi(x) for 16-bit results. Phi(-a) = exp(-a^2 / 2) P(t) with t = 1 / (1 + 0.3748 a); P was fitted to a least
/// largest relative error, 3.2e-5.
__device__ __forceinline__ float gated_gelu(float x) {
  const float a = fminf(fabsf(x), 16.0f);  // beyond, the tail is zero in float
  const float t = __fdividef(1.0f, 1.0f + 0.3747665940288704f * a);
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a * a * -0.72134752044448170f));
  const float p =
      ((((-0.09049919247627258f * t + 0.20043335855007172f) * t + 0.08345574140548706f) * t + 0.15764164924621582f) *
           t +
       0.14896917343139648f) *
      t;
  return 0.5f * (x + fabsf(x)) - a * (p * power);
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

/// Columns first_column .. of 64 rows from first_row on, of which the caller's warpgroup holds the sums.
template <class T, int Count>
__device__ __forceinline__ void write_gated(const GatedArguments<T>& p, int first_row, int first_column,
                                            const float (&values)[Count], const float (&gates)[Count]) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 4;
#pragma unroll
  for (int group = 0; group < Count / 16; ++group) {  // 32 columns: lane i of four writes columns 8 i to 8 i + 7
    float value_bias[8], gate_bias[8];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int column = first_column + group * 32 + k * 8 + lane * 2;
      const bool biased = p.bias != nullptr && column < p.hidden;
      const unsigned v = biased ? __ldg(reinterpret_cast<const unsigned*>(p.bias + column)) : 0u;
      const unsigned g = biased ? __ldg(reinterpret_cast<const unsigned*>(p.bias + p.hidden + column)) : 0u;
      value_bias[2 * k] = widen_half_of<T>(v, 0), value_bias[2 * k + 1] = widen_half_of<T>(v, 1);
      gate_bias[2 * k] = widen_half_of<T>(g, 0), gate_bias[2 * k + 1] = widen_half_of<T>(g, 1);
    }
#pragma unroll
    for (int half_tile = 0; half_tile < 2; ++half_tile) {
      const int row = first_row + thread / 32 * 16 + thread / 4 % 8 + 8 * half_tile;
      unsigned value[4], gate[4], gated[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int at = group * 16 + k * 4 + half_tile * 2;
        value[k] = rounded_pair<T>(values[at] + value_bias[2 * k], values[at + 1] + value_bias[2 * k + 1]);
        gate[k] = rounded_pair<T>(gates[at] + gate_bias[2 * k], gates[at + 1] + gate_bias[2 * k + 1]);
        gated[k] = rounded_pair<T>(widen_half_of<T>(value[k], 0) * gated_gelu(widen_half_of<T>(gate[k], 0)),
                                widen_half_of<T>(value[k], 1) * gated_gelu(widen_half_of<T>(gate[k], 1)));
      }
      transpose_quad(gated);
      const int column = first_column + group * 32 + lane * 8;
      const bool inside = row < p.rows && column < p.hidden;
      const index_t place = static_cast<index_t>(row) * p.hidden + column;
      if (inside) *reinterpret_cast<uint4*>(p.out + place) = make_uint4(gated[0], gated[1], gated[2], gated[3]);
      if (p.both == nullptr) continue;
      transpose_quad(value);
      transpose_quad(gate);
      T* const to = p.both + place + static_cast<index_t>(row) * p.hidden;
      if (inside) *reinterpret_cast<uint4*>(to) = make_uint4(value[0], value[1], value[2], value[3]);
      if (inside) *reinterpret_cast<uint4*>(to + p.hidden) = make_uint4(gate[0], gate[1], gate[2], gate[3]);
    }
  }
}

template <class T, int Columns>
__global__ void __launch_bounds__(384, 1)
    gated_product_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
                         const __grid_constant__ GatedArguments<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tile = GatedTile<Columns>;
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
    for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += static_cast<int>(gridDim.x)) {
      const int row = tile / p.tiles_n * Tile::rows, column = tile % p.tiles_n * Columns;
      for (int step = 0; step < p.k_steps; ++step) {
        unsigned char* const to = ring + stage * Tile::stage_bytes;
        barrier_wait(&empty[stage], parity ^ 1);
        barrier_expect(&full[stage], Tile::stage_bytes);
        copy_box(to, x_map, &full[stage], step * 64, row, 0);
        copy_box(to + Tile::a_bytes, weight_map, &full[stage], step * 64, column, 0);
        copy_box(to + Tile::a_bytes + Tile::half_bytes, weight_map, &full[stage], step * 64, p.hidden + column, 0);
        advance();
      }
    }
  } else {
    take_registers<224>();
    const bool is_first_lane = threadIdx.x % 32 == 0;
    constexpr int panel_bytes = 64 * tile_row_bytes;
    for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += static_cast<int>(gridDim.x)) {
      float values[count], gates[count];
#pragma unroll
      for (int i = 0; i < count; ++i) values[i] = gates[i] = 0.0f;
      int previous = -1;
      for (int step = 0; step < p.k_steps; ++step) {
        const unsigned char* const from = ring + stage * Tile::stage_bytes;
        const std::uint64_t a = tile_descriptor<TileMajor::k>(from + (group - 1) * panel_bytes, panel_bytes);
        const std::uint64_t v = tile_descriptor<TileMajor::k>(from + Tile::a_bytes, panel_bytes);
        const std::uint64_t g = tile_descriptor<TileMajor::k>(from + Tile::a_bytes + Tile::half_bytes, panel_bytes);
        barrier_wait(&full[stage], parity);
        warpgroup_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          warpgroup_product<T, TileMajor::k, TileMajor::k>(values, a + k * tile_advance<TileMajor::k>,
                                                           v + k * tile_advance<TileMajor::k>);
          warpgroup_product<T, TileMajor::k, TileMajor::k>(gates, a + k * tile_advance<TileMajor::k>,
                                                           g + k * tile_advance<TileMajor::k>);
        }
        warpgroup_commit();
        warpgroup_wait<1>();  // the products of the step before are done with their stage
        if (previous >= 0 && is_first_lane) barrier_arrive(&empty[previous]);
        previous = stage;
        advance();
      }
      warpgroup_wait<0>();
      if (previous >= 0 && is_first_lane) barrier_arrive(&empty[previous]);
      write_gated(p, tile / p.tiles_n * Tile::rows + (group - 1) * 64, tile % p.tiles_n * Columns, values, gates);
    }
  }
#endif
}

template <class T, int Columns>
void launch_gated_product(Context<Cuda>& context, const kernel::GatedProductParams<T>& p) {
  using Tile = GatedTile<Columns>;
  const auto kernel = gated_product_kernel<T, Columns>;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::shared_bytes),
             "gated_product_kernel");
  const auto pieces = [](index_t extent, index_t piece) { return static_cast<int>((extent + piece - 1) / piece); };
  GatedArguments<T> arguments{};
  arguments.rows = static_cast<int>(p.rows), arguments.hidden = static_cast<int>(p.hidden);
  arguments.k_steps = pieces(p.in, 64);
  arguments.tiles_n = pieces(p.hidden, Columns);
  arguments.tiles = arguments.tiles_n * pieces(p.rows, Tile::rows);
  arguments.bias = p.bias, arguments.both = p.both, arguments.out = p.out;
  TensorBoxes x{3, {p.in, p.rows, 1}, {64, Tile::rows, 1}, {1, 1, 1}};
  x.stride[1] = p.x_row;
  const CUtensorMap x_map = tensor_map(p.x, x);
  const CUtensorMap weight_map = tensor_map(p.weight, {3, {p.in, 2 * p.hidden, 1}, {64, Columns, 1}, {1, 1, 1}});
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
             std::max({p.rows, p.in, p.hidden}) < largest && p.rows / 128 * (p.hidden / 128) < largest &&
             detail::common_alignment(p.x, p.weight, p.bias) == 16 &&
             detail::has_hopper_body(detail::gated_product_kernel<T, 128>);
    }
  }

  template <class T>
  static void run(Context<Cuda>& context, const GatedProductParams<T>& p) {
    if constexpr (sizeof(T) == 2) {
      // The width that leaves the fewest columns to the busiest multiprocessor.
      const auto busiest = [&](index_t columns) {
        const index_t tiles = (p.rows + 127) / 128 * ((p.hidden + columns - 1) / columns);
        return (tiles + context.multiprocessors() - 1) / context.multiprocessors() * columns;
      };
      if (busiest(160) <= busiest(128))
        detail::launch_gated_product<T, 160>(context, p);
      else
        detail::launch_gated_product<T, 128>(context, p);
    }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
