// SPDX-License-Identifier: MIT
// Pieces of the group norm kernels: tiles of channels and chunks of pixels, sums over rows of threads, statistics of a chunk.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/normalization.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr int norm_block_threads = 320;

/// Sizes that all kernels of one group norm share. What would be a division on the device is done before: divisions of 64 bits
/// would take as long as the pixels of a short chunk.
struct GroupNormLaunch {
  index_t spatial = 0, c = 0, groups = 0;
  index_t chunk = 0;  ///< pixels
  int chunks = 0;
  int tile = 0, tile_groups = 0;  ///< channels of a tile, and their groups
  int width = 1;                  ///< channels of a group
  double per_element = 0;         ///< 1 / elements of a group in an image
  FastDivisor by_width;
  bool silu = false;
  bool channel_sums = false;  ///< whether those of the gradient are wanted (group_norm_resident.cuh)

  GroupNormLaunch() = default;
  explicit GroupNormLaunch(const kernel::GroupNormShape& s)
      : spatial(s.spatial), c(s.c), groups(s.groups), width(static_cast<int>(s.c / s.groups)),
        per_element(1.0 / (static_cast<double>(s.spatial) * static_cast<double>(width))), by_width(static_cast<unsigned>(width)),
        silu(s.silu) {}

  void set_tile(index_t channels) {
    tile = static_cast<int>(channels);
    tile_groups = tile / width;
  }
  void set_chunks(index_t count) {
    chunk = (spatial + count - 1) / count;
    chunks = static_cast<int>((spatial + chunk - 1) / chunk);
  }
  __device__ __forceinline__ int group_of(index_t channel) const {
    return static_cast<int>(by_width.quotient(static_cast<unsigned>(channel)));
  }
  /// Groups of this block's tile.
  __device__ __forceinline__ int tile_groups_here() const {
    return min(tile_groups, static_cast<int>(groups) - static_cast<int>(blockIdx.y) * tile_groups);
  }
  __device__ __forceinline__ index_t pixels_of(index_t which) const { return min(spatial, (which + 1) * chunk) - which * chunk; }
};

/// A launch of kernels that walk pixels.
struct GroupNormGrid {
  GroupNormLaunch sizes;
  dim3 grid, block;
  std::size_t shared = 0;
};

/// 1 / (1 + exp(-z)), and the derivative of silu(z), from the device's fast exponential: relative error about 1e-6 in float.
template <class Number>
__device__ __forceinline__ Number sigmoid_number(Number z) {
  if constexpr (std::is_same_v<Number, float>)
    return reciprocal_approximate(1.0f + exp2_approximate(z * -1.44269504f));
  else
    return 1 / (1 + ::exp(-z));
}
template <class Number>
__device__ __forceinline__ Number silu_slope(Number z) {
  const Number s = sigmoid_number(z);
  return s * (1 + z * (1 - s));
}

/// The function after a norm's z: silu or none, for numbers that are stored as T. It takes z times `factor`, which a norm's scale
/// and shift take in. For bfloat16 silu(z) = h + h tanh(h) with h = z / 2 and the device's tanh: one operation of the unit for
/// special functions instead of two. Its error was at most 1e-5 in all bfloat16 z, and half a unit in the last place above z = -4.
template <class T>
struct NormActivation {
  using Number = compute_t<T>;
  static constexpr bool by_tanh = std::is_same_v<T, bfloat16>;
  bool silu;
  Number factor;

  __device__ __forceinline__ explicit NormActivation(bool silu_) : silu(silu_), factor(by_tanh && silu_ ? Number(0.5) : Number(1)) {}

  __device__ __forceinline__ Number value(Number z) const {
    if constexpr (by_tanh)
      return z * (silu ? tanh_approximate(z) : 0.0f) + z;
    else
      return silu ? z * sigmoid_number(z) : z;
  }
  /// The gradient of z over `factor`, where dy is that of the value.
  __device__ __forceinline__ Number gradient(Number dy, Number z) const {
    if constexpr (by_tanh) {
      float rest = 0;
      if (silu) {
        const float t = tanh_approximate(z);
        rest = z * (1 - t * t) + t;
      }
      return dy * rest + dy;
    } else {
      return silu ? dy * silu_slope(z) : dy;
    }
  }
};

/// The first channel of this thread; c and more for threads without one.
template <int Vector>
__device__ __forceinline__ index_t first_channel(const GroupNormLaunch& g) {
  const int in_tile = static_cast<int>(threadIdx.x) * Vector;
  return in_tile < g.tile ? static_cast<index_t>(blockIdx.y) * static_cast<index_t>(g.tile) + in_tile : g.c;
}

/// Reads Vector channels of this thread's pixels of the chunk, Inputs arrays side by side, and calls `body(offset, values)`. Four
/// pixels are in flight at a time. Backwards starts with the last pixels: those that a walk before left in the L2 cache.
template <int Vector, bool Backwards = false, int Inputs, class T, class Body>
__device__ __forceinline__ void for_pixels_of_chunk(const GroupNormLaunch& g, index_t channel, const T* const (&inputs)[Inputs],
                                                    Body&& body) {
  constexpr int ahead = Inputs == 1 ? 4 : 2;
  using Number = compute_t<T>;
  const index_t first = blockIdx.x * g.chunk, last = first + g.pixels_of(blockIdx.x), step = blockDim.y;
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
    const int first = static_cast<int>(threadIdx.x) * Vector, row = static_cast<int>(threadIdx.y);
    store_numbers<Vector>(shared + row * channels + first, a);
    store_numbers<Vector>(shared + (rows + row) * channels + first, b);
    __syncthreads();
    // Where there are many rows, several threads share a channel's, and one adds their parts.
    constexpr int sums_of_column = 2 * Vector;
    const int parts = max(1, rows / sums_of_column);
    const auto place = [&](int sum, int from_row) {
      return shared + (sum / Vector * rows + from_row) * channels + first + sum % Vector;
    };
    for (int at = row; at < parts * sums_of_column; at += rows) {
      const int part = at / sums_of_column, sum = at % sums_of_column;
      Number total = *place(sum, part);
#pragma unroll 2
      for (int other = part + parts; other < rows; other += parts) total += *place(sum, other);
      *place(sum, part) = total;
    }
    __syncthreads();
    if (parts > 1) {
      if (row < sums_of_column) {
        Number total = *place(row, 0);
#pragma unroll 1
        for (int part = 1; part < parts; ++part) total += *place(row, part);
        *place(row, 0) = total;
      }
      __syncthreads();
    }
    sums[0] = shared;
    sums[1] = shared + rows * channels;
  }
};

/// What RowSums needs for `threads` threads.
__host__ __device__ constexpr index_t row_sums_numbers(index_t threads, int vector) { return 2 * threads * vector; }

/// Lanes that share a group.
inline constexpr int group_lanes = 16;

/// Calls `body(group, its number in the tile, lane)` for every group of this block's tile, with group_lanes lanes of a warp.
template <class Body>
__device__ __forceinline__ void for_groups_of_tile(const GroupNormLaunch& g, Body&& body) {
  const int first = static_cast<int>(blockIdx.y) * g.tile_groups, count = g.tile_groups_here();
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int at_once = static_cast<int>(blockDim.x * blockDim.y) / group_lanes;  // no group of lanes is cut at the end
  if (thread >= at_once * group_lanes) return;
#pragma unroll 1
  for (int local = thread / group_lanes; local < count; local += at_once) body(first + local, local, thread % group_lanes);
}

/// Sum over the lanes that share a group; all get it.
template <class Number>
__device__ __forceinline__ Number sum_of_lanes(Number value) {
  const unsigned mask = 0xffffu << (threadIdx.y * blockDim.x + threadIdx.x) % 32 / group_lanes * group_lanes;
#pragma unroll
  for (int step = group_lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(mask, value, step, group_lanes);
  return value;
}

/// Mean and sum of squared distances from it of a group's elements in a chunk of pixels, from the sums of each channel's
/// distances from the chunk's first pixel, and of their squares. `origin` is that pixel, at the group's first channel `at` of
/// the tile. The group's lanes share the work, and all get the result.
template <int Vector, class T>
struct ChunkStatistics {
  double mean, squares;

  __device__ __forceinline__ ChunkStatistics(const GroupNormLaunch& g, const T* origin, const RowSums<Vector, compute_t<T>>& rows,
                                             index_t pixel_count, int at, int lane) {
    using Number = compute_t<T>;
    const auto pixels = static_cast<Number>(pixel_count);
    const Number per_pixel = 1 / pixels, per_channel = 1 / static_cast<Number>(g.width);
    const Number base = widen(origin[0]);  // distances from one number, so that float suffices
    const auto own_mean = [&](int i) { return (widen(origin[i]) - base) + rows.sums[0][at + i] * per_pixel; };
    Number center{};
#pragma unroll 1
    for (int i = lane; i < g.width; i += group_lanes) center += own_mean(i);
    center = sum_of_lanes(center) * per_channel;
    Number spread{};  // each channel about its own mean, then about the group's
#pragma unroll 1
    for (int i = lane; i < g.width; i += group_lanes) {
      const Number distance = own_mean(i) - center;
      spread += rows.sums[1][at + i] - rows.sums[0][at + i] * (rows.sums[0][at + i] * per_pixel) + pixels * distance * distance;
    }
    mean = static_cast<double>(base) + static_cast<double>(center);
    squares = static_cast<double>(sum_of_lanes(spread));
  }
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
