// SPDX-License-Identifier: MIT
// Pieces of the group norm kernels: tiles of channels and chunks of pixels, sums over rows of threads, statistics of a chunk.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/normalization.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr int norm_block_threads = 320;

/// Sizes that all kernels of one group norm share.
struct GroupNormLaunch {
  index_t spatial = 0, c = 0, groups = 0;
  index_t chunk = 0, chunks = 0;  ///< pixels
  index_t tile = 0;               ///< channels
  bool silu = false;

  __host__ __device__ index_t width() const { return c / groups; }
  /// Divisions of 64 bits would take as long as the pixels of a short chunk.
  __device__ index_t group_of(index_t channel) const {
    return static_cast<unsigned>(channel) / (static_cast<unsigned>(c) / static_cast<unsigned>(groups));
  }
};

/// A launch of kernels that walk pixels.
struct GroupNormGrid {
  GroupNormLaunch sizes;
  dim3 grid, block;
  std::size_t shared = 0;
};

/// silu(z), and its derivative, from the device's fast exponential: relative error about 1e-6 in float.
template <class Number>
__device__ __forceinline__ Number sigmoid_number(Number z) {
  if constexpr (std::is_same_v<Number, float>)
    return __fdividef(1.0f, 1.0f + __expf(-z));
  else
    return 1 / (1 + ::exp(-z));
}
template <class Number>
__device__ __forceinline__ Number silu_slope(Number z) {
  const Number s = sigmoid_number(z);
  return s * (1 + z * (1 - s));
}

/// The first channel of this thread; c and more for threads without one.
template <int Vector>
__device__ __forceinline__ index_t first_channel(const GroupNormLaunch& g) {
  const index_t in_tile = static_cast<index_t>(threadIdx.x) * Vector;
  return in_tile < g.tile ? static_cast<index_t>(blockIdx.y) * g.tile + in_tile : g.c;
}

/// Reads Vector channels of this thread's pixels of the chunk, Inputs arrays side by side, and calls `body(offset, values)`. Four
/// pixels are in flight at a time. Backwards starts with the last pixels: those that a walk before left in the L2 cache.
template <int Vector, bool Backwards = false, int Inputs, class T, class Body>
__device__ __forceinline__ void for_pixels_of_chunk(const GroupNormLaunch& g, index_t channel, const T* const (&inputs)[Inputs],
                                                    Body&& body) {
  constexpr int ahead = Inputs == 1 ? 4 : 2;
  using Number = compute_t<T>;
  const index_t first = blockIdx.x * g.chunk, last = min(g.spatial, first + g.chunk), step = blockDim.y;
  const index_t origin = blockIdx.z * g.spatial * g.c + channel;
  const auto offset = [&](index_t at) { return origin + (Backwards ? first + last - 1 - at : at) * g.c; };
  index_t pixel = first + threadIdx.y;
  for (; pixel + (ahead - 1) * step < last; pixel += ahead * step) {
    Number values[ahead][Inputs][Vector];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
#pragma unroll
      for (int k = 0; k < Inputs; ++k) load_numbers<Vector>(inputs[k] + offset(pixel + i * step), values[i][k]);
#pragma unroll
    for (int i = 0; i < ahead; ++i) body(offset(pixel + i * step), values[i]);
  }
  for (; pixel < last; pixel += step) {
    Number values[Inputs][Vector];
#pragma unroll
    for (int k = 0; k < Inputs; ++k) load_numbers<Vector>(inputs[k] + offset(pixel), values[k]);
    body(offset(pixel), values);
  }
}

/// The launched shared memory as numbers.
template <class Number>
__device__ __forceinline__ Number* launched_numbers() {
  return reinterpret_cast<Number*>(launched_shared_memory());
}

/// Adds `a` and `b` over the block's rows of threads; sums[0] and sums[1] hold the tile's channels afterwards, for all threads.
/// `shared` has room for row_sums_numbers, aligned to 16 bytes.
template <int Vector, class Number>
struct RowSums {
  const Number* sums[2];

  __device__ __forceinline__ RowSums(Number* shared, const Number (&a)[Vector], const Number (&b)[Vector]) {
    const int channels = static_cast<int>(blockDim.x) * Vector, rows = static_cast<int>(blockDim.y);
    const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x), threads = static_cast<int>(blockDim.x * blockDim.y);
    Number* own = shared + (static_cast<int>(threadIdx.y) * channels + static_cast<int>(threadIdx.x) * Vector);
    store_numbers<Vector>(own, a);
    store_numbers<Vector>(own + rows * channels, b);
    __syncthreads();
    // Several threads share a column, each a part of its rows; then one adds the parts, which lie in their first rows.
    const int columns = 2 * channels, parts = max(1, min(threads / columns, rows));
    for (int at = thread; at < parts * columns; at += threads) {
      const int part = at / columns, column = at % columns, first = part * rows / parts, last = (part + 1) * rows / parts;
      Number* from = shared + (column < channels ? column : column - channels + rows * channels);
      Number total = from[first * channels];
#pragma unroll 4
      for (int row = first + 1; row < last; ++row) total += from[row * channels];
      from[first * channels] = total;
    }
    __syncthreads();
    if (parts > 1) {
      if (thread < columns) {
        Number* from = shared + (thread < channels ? thread : thread - channels + rows * channels);
        Number total = from[0];
        for (int part = 1; part < parts; ++part) total += from[part * rows / parts * channels];
        from[0] = total;
      }
      __syncthreads();
    }
    sums[0] = shared;
    sums[1] = shared + rows * channels;
  }
};

/// What RowSums needs for `threads` threads.
__host__ __device__ constexpr index_t row_sums_numbers(index_t threads, int vector) { return 2 * threads * vector; }

/// Calls `body(group, first channel in the tile, lane, lanes)` for every group of this block's tile; 8 lanes of a warp share a
/// group, and all threads of the block's whole warps take part.
template <class Body>
__device__ __forceinline__ void for_groups_of_tile(const GroupNormLaunch& g, Body&& body) {
  constexpr int lanes = 8;
  const int start = static_cast<int>(blockIdx.y * g.tile), width = static_cast<int>(g.width());
  const int count = static_cast<int>(min(g.tile, g.c - start)) / width;
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int threads = static_cast<int>(blockDim.x * blockDim.y) / lanes * lanes;  // no group of lanes is cut at the end
  if (threads == 0) {
    if (thread == 0)
      for (int group = 0; group < count; ++group) body(start / width + group, group * width, 0, 1);
    return;
  }
  if (thread >= threads) return;
  for (int group = thread / lanes; group < count; group += threads / lanes)
    body(start / width + group, group * width, thread % lanes, lanes);
}

/// Sum over `lanes` (1 or 8) neighbouring lanes; the first one has it.
template <class Number>
__device__ __forceinline__ Number sum_of_lanes(Number value, index_t lanes) {
  if (lanes == 1) return value;
  const unsigned mask = 0xffu << (threadIdx.y * blockDim.x + threadIdx.x) % 32 / 8 * 8;
  for (int step = 4; step > 0; step /= 2) value += __shfl_xor_sync(mask, value, step, 8);
  return value;
}

/// Mean and sum of squared distances from it of a group's elements in a chunk of pixels, from the sums of each channel's
/// distances from the chunk's first pixel, and of their squares. `origin` is that pixel, at the group's first channel `at` of
/// the tile. `lanes` lanes share the work, and all get the result.
template <int Vector, class T>
struct ChunkStatistics {
  double mean, squares;

  __device__ __forceinline__ ChunkStatistics(const GroupNormLaunch& g, const T* origin, const RowSums<Vector, compute_t<T>>& rows,
                                             index_t pixel_count, index_t at, index_t lane, index_t lanes) {
    using Number = compute_t<T>;
    const auto pixels = static_cast<Number>(pixel_count);
    const Number base = widen(origin[0]);  // distances from one number, so that float suffices
    const auto own_mean = [&](index_t i) { return (widen(origin[i]) - base) + rows.sums[0][at + i] / pixels; };
    Number center{};
    for (index_t i = lane; i < g.width(); i += lanes) center += own_mean(i);
    center = sum_of_lanes(center, lanes) / static_cast<Number>(g.width());
    Number spread{};  // each channel about its own mean, then about the group's
    for (index_t i = lane; i < g.width(); i += lanes) {
      const Number distance = own_mean(i) - center;
      spread += rows.sums[1][at + i] - rows.sums[0][at + i] * (rows.sums[0][at + i] / pixels) + pixels * distance * distance;
    }
    mean = static_cast<double>(base) + static_cast<double>(center);
    squares = static_cast<double>(sum_of_lanes(spread, lanes));
  }
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
