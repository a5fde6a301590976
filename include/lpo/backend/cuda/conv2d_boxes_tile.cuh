// SPDX-License-Identifier: MIT
// The tiles of conv2d_boxes.cuh: their shape, their copies, their results.
#pragma once

#include <lpo/backend/cuda/conv2d_boxes_schedule.cuh>
#include <lpo/backend/cuda/warpgroup_product.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

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

/// Copies the operands of a tile's steps into stages, one after the other. It counts along: divisions at every step
/// would take longer than the products.
template <ConvPass pass, int Blocks, int Columns>
class BoxCopies {
  using Tile = BoxTile<pass, Blocks, Columns>;

 public:
  __device__ __forceinline__ BoxCopies(const BoxedConvolution& p, const BoxWork& work)
      : phase_(p.phase_of<pass>(work.tile)),
        column_(work.tile % p.tiles_n * Columns),
        line_(p.line_of<pass>(work.tile)),
        pixel_(p, pass == ConvPass::weights ? work.first : line_) {
    if constexpr (pass == ConvPass::weights) {
      const int last = phase_.taps_h * phase_.taps_w * p.chunks - 1;
#pragma unroll
      for (int block = 0; block < 2 * Blocks; ++block) {
        const int wanted = line_ * 2 * Blocks + block,
                  row = wanted < last ? wanted : last;  // past the end: not written
        const int tap = row / p.chunks;
        channel_[block] = (row - tap * p.chunks) * 64;
        tap_h_[block] = tap / phase_.taps_w;
        tap_w_[block] = tap - tap_h_[block] * phase_.taps_w;
      }
    } else {
      const int tap = work.first / p.chunks;
      channel_[0] = (work.first - tap * p.chunks) * 64;
      tap_h_[0] = tap / phase_.taps_w;
      tap_w_[0] = tap - tap_h_[0] * phase_.taps_w;
    }
  }

  __device__ __forceinline__ void next(const BoxedConvolution& p, const CUtensorMap& a_map, const CUtensorMap& b_map,
                                       unsigned char* stage, std::uint64_t* full) {
    unsigned char* b = stage + Tile::a_bytes;
    const int i = pixel_.i * p.step + phase_.shift_h, j = pixel_.j * p.step + phase_.shift_w;
    barrier_expect(full, Tile::stage_bytes);
    if constexpr (pass == ConvPass::weights) {
#pragma unroll
      for (int block = 0; block < 2 * Blocks; ++block)
        copy_box(stage + block * Tile::panel_bytes, a_map, full, channel_[block], j + tap_w_[block], i + tap_h_[block],
                 pixel_.n);
#pragma unroll
      for (int panel = 0; panel < Tile::panels; ++panel)
        copy_box(b + panel * Tile::panel_bytes, b_map, full, column_ + panel * 64, pixel_.j, pixel_.i, pixel_.n);
      pixel_.j += 1 << p.box_w_log2;
      if (pixel_.j < p.grid_w) return;
      pixel_.j = 0;
      pixel_.i += 1 << p.box_h_log2;
      if (pixel_.i < p.grid_h) return;
      pixel_.i = 0;
      pixel_.n += p.box_n;
    } else {
      const int weights = phase_.first_tap + tap_h_[0] * p.tap_step_h + tap_w_[0] * p.tap_step_w;
      copy_box(stage, a_map, full, channel_[0], j + p.direction * tap_w_[0], i + p.direction * tap_h_[0], pixel_.n);
      if constexpr (pass == ConvPass::forward) {
        copy_box(b, b_map, full, channel_[0], weights, column_);
      } else {
#pragma unroll
        for (int panel = 0; panel < Tile::panels; ++panel)
          copy_box(b + panel * Tile::panel_bytes, b_map, full, column_ + panel * 64, weights, channel_[0]);
      }
      channel_[0] += 64;
      if (channel_[0] < p.channels) return;
      channel_[0] = 0;
      if (++tap_w_[0] < phase_.taps_w) return;
      tap_w_[0] = 0;
      ++tap_h_[0];
    }
  }

 private:
  static constexpr int rows = pass == ConvPass::weights ? 2 * Blocks : 1;

  BoxPhase phase_;
  int column_, line_;  // of the result: the first column; the line of tiles
  BoxOrigin pixel_;
  int channel_[rows], tap_h_[rows], tap_w_[rows];
};

// Results. A thread holds pairs of a fragment (see warpgroup_product); these exchange them for 16 bytes that lie
// together.

/// Lane i of each four gets, as value j, the value i of lane j.
template <class Value>
__device__ __forceinline__ void transpose_quad(Value (&values)[4]) {
  const bool odd = (threadIdx.x & 1) != 0, upper = (threadIdx.x & 2) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const Value got = __shfl_xor_sync(0xffffffffu, odd ? values[i] : values[i + 1], 1);
    values[i] = odd ? got : values[i];
    values[i + 1] = odd ? values[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Value got = __shfl_xor_sync(0xffffffffu, upper ? values[i] : values[i + 2], 2);
    values[i] = upper ? got : values[i];
    values[i + 2] = upper ? values[i + 2] : got;
  }
}

/// Transposes the 8 x 8 numbers of 16 bits of a warp; lane 4 i + j holds columns 2 j and 2 j + 1 of row i.
__device__ __forceinline__ unsigned transpose_warp(unsigned pair) {
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(pair) : "r"(pair));
  return pair;
}

template <class T>
__device__ __forceinline__ unsigned narrow_pair(float low, float high) {
  return narrow<T>(low).bits | static_cast<unsigned>(narrow<T>(high).bits) << 16;
}
template <class T>
__device__ __forceinline__ float widen_half_of(unsigned pair, int half_index) {
  T stored;
  stored.bits = static_cast<std::uint16_t>(pair >> (16 * half_index));
  return widen(stored);
}

/// Writes 64 rows of pixels: out (+)= sums + bias.
template <class T, int Count>
__device__ __forceinline__ void write_pixels(const BoxedConvolution& p, const BoxPhase& phase, int tile_m,
                                             int first_row, int first_column, const float (&sums)[Count], const T* bias,
                                             T* out, bool accumulate) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const BoxOrigin at(p, tile_m);
#pragma unroll
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    const int row = first_row + thread / 32 * 16 + thread / 4 % 8 + 8 * half_tile;
    const int line = row >> p.box_w_log2, n = at.n + (line >> p.box_h_log2);
    const int i = (at.i + (line & ((1 << p.box_h_log2) - 1))) * p.out_step + phase.out_i;
    const int j = (at.j + (row & ((1 << p.box_w_log2) - 1))) * p.out_step + phase.out_j;
    const bool inside = j < p.out_w && i < p.out_h && n < p.grid_n;
    const index_t pixel = (static_cast<index_t>(n) * p.out_h + i) * p.out_w + j;
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
      if (!inside || column >= p.columns) continue;
#pragma unroll
      for (int k = 0; k < 8; ++k) values[k] = k % 2 == 0 ? even[k / 2] : odd[k / 2];
      T* to = out + pixel * p.columns + column;
      if (bias != nullptr) {
        load_numbers<8>(bias + column, added);
#pragma unroll
        for (int k = 0; k < 8; ++k) values[k] += added[k];
      }
      if (accumulate) {
        load_numbers<8>(to, added);
#pragma unroll
        for (int k = 0; k < 8; ++k) values[k] += added[k];
      }
      store_numbers<8>(to, values);
    }
  }
}

/// Writes 64 rows (channels of one tap) of weights: out [columns, taps, channels] (+)= sums, which the warps transpose.
template <class T, int Count>
__device__ __forceinline__ void write_weights(const BoxedConvolution& p, int block, int first_column,
                                              const float (&sums)[Count], T* out, bool accumulate) {
  const int thread = static_cast<int>(threadIdx.x) % 128, quad_lane = thread % 4;
  const int taps = p.phases[0].taps_h * p.phases[0].taps_w, tap = block / p.chunks;
  if (tap >= taps) return;
  const int channel = (block - tap * p.chunks) * 64 + thread / 32 * 16 + quad_lane % 2 * 8;
#pragma unroll
  for (int group = 0; group < Count / 8; ++group) {  // 16 columns: lane i of four gets 8 channels of column i / 2
    const int column = first_column + group * 16 + quad_lane / 2 * 8 + thread / 4 % 8;
    const bool inside = channel < p.channels && column < p.columns;
    auto* to = reinterpret_cast<uint4*>(out + (static_cast<index_t>(column) * taps + tap) * p.channels + channel);
    unsigned old[4] = {};
    if (accumulate) {
      if (inside) {
        const uint4 loaded = *to;
        old[0] = loaded.x, old[1] = loaded.y, old[2] = loaded.z, old[3] = loaded.w;
      }
      transpose_quad(old);
    }
    unsigned pairs[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float low = sums[group * 8 + k * 2], high = sums[group * 8 + k * 2 + 1];
      if (accumulate) {
        const unsigned added = transpose_warp(old[k]);
        low += widen_half_of<T>(added, 0);
        high += widen_half_of<T>(added, 1);
      }
      pairs[k] = transpose_warp(narrow_pair<T>(low, high));
    }
    transpose_quad(pairs);
    if (inside) *to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

/// Writes block `block` (64 rows) of a tile, columns skipped .. skipped + 2 * Count - 1 of it.
template <class T, ConvPass pass, int Blocks, int Columns, int Count>
__device__ __forceinline__ void write_block(const BoxedConvolution& p, int tile, int block, int skipped,
                                            const float (&sums)[Count], const T* bias, T* out, bool accumulate) {
  const int first_column = tile % p.tiles_n * Columns + skipped, tile_m = p.line_of<pass>(tile);
  if constexpr (pass == ConvPass::weights)
    write_weights(p, tile_m * 2 * Blocks + block, first_column, sums, out, accumulate);
  else
    write_pixels(p, p.phase_of<pass>(tile), tile_m, block * 64, first_column, sums, bias, out, accumulate);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
