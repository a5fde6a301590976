// SPDX-License-Identifier: MIT
// Group norm of images whose groups fit on chip: a cluster of blocks holds them between statistics and result.
#pragma once

#include <numeric>

#include <lpo/backend/cuda/async_copy.cuh>
#include <lpo/backend/cuda/cluster.cuh>
#include <lpo/backend/cuda/group_norm_tiles.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// Formula: as in group_norm.cuh.
// Launch: blockIdx = (chunk of pixels, tile of channels, image), and the chunks of a tile are a cluster. A block has a column of
//   threads per Vector channels, and rows of threads that share the chunk's pixels.
// Memory: a thread copies its own pieces of x (and dy) to shared memory, all at once, adds while they arrive, and reads them
//   again for the result: device memory is read once and written once. Blocks send each other two numbers per group.
// Numerics: as in group_norm.cuh; z = (x - mean) a + b with a = inverse_deviation weight.
// Limits: what resident_grid() asks; clusters of more than one block need sm_90.

inline constexpr int resident_stages = 4;  ///< parts of a thread's copies that are waited for one after the other

/// This block's shared memory, in this order, each part aligned to 16 bytes.
template <int Inputs, class T>
struct ResidentLayout {
  T* staged[Inputs];            ///< [pixel of the chunk, tile]
  compute_t<T>* sums;           ///< of RowSums
  double* exchanged;            ///< [block of the cluster, group of the tile, 2]
  compute_t<T>* group_numbers;  ///< [group of the tile, 3]

  __device__ __forceinline__ explicit ResidentLayout(const GroupNormLaunch& g) {
    unsigned char* at = launched_shared_memory();
    const index_t groups = g.tile / g.width();
    for (int k = 0; k < Inputs; ++k, at += g.chunk * g.tile * static_cast<index_t>(sizeof(T))) staged[k] = reinterpret_cast<T*>(at);
    exchanged = reinterpret_cast<double*>(at);
    at += g.chunks * groups * 16;
    sums = reinterpret_cast<compute_t<T>*>(at);
    group_numbers = sums + row_sums_numbers(static_cast<index_t>(blockDim.x * blockDim.y), 16 / static_cast<int>(sizeof(T)));
  }
};
template <class T>
index_t resident_bytes(const GroupNormLaunch& g, int inputs, index_t threads) {
  const index_t groups = g.tile / g.width(), number = sizeof(compute_t<T>);
  return inputs * g.chunk * g.tile * static_cast<index_t>(sizeof(T)) + g.chunks * groups * 16 +
         row_sums_numbers(threads, 16 / static_cast<int>(sizeof(T))) * number + groups * 3 * number;
}

/// This thread's pieces of the chunk: 16 bytes of a pixel, in every blockDim.y-th one.
template <int Vector, int Inputs, class T>
class ResidentPieces {
 public:
  using Number = compute_t<T>;

  __device__ __forceinline__ ResidentPieces(const GroupNormLaunch& g, const ResidentLayout<Inputs, T>& layout) : layout_(layout) {
    const int pixels = static_cast<int>(min(g.chunk, g.spatial - blockIdx.x * g.chunk)), row = static_cast<int>(threadIdx.y);
    const int step = static_cast<int>(blockDim.y);
    const bool inside = first_channel<Vector>(g) < g.c;
    count_ = inside && row < pixels ? (pixels - row + step - 1) / step : 0;
    offset_ = row * static_cast<int>(g.tile) + static_cast<int>(threadIdx.x) * Vector;
    offset_step_ = step * static_cast<int>(g.tile);
    global_ = (blockIdx.z * g.spatial + blockIdx.x * g.chunk + row) * g.c + first_channel<Vector>(g);
    global_step_ = step * g.c;
  }

  /// Starts all copies, in resident_stages groups.
  __device__ __forceinline__ void fetch(const T* const (&inputs)[Inputs]) const {
    const int part = (count_ + resident_stages - 1) / resident_stages;
    for (int stage = 0; stage < resident_stages; ++stage) {
      for (int i = stage * part; i < min((stage + 1) * part, count_); ++i)
#pragma unroll
        for (int k = 0; k < Inputs; ++k)
          copy_16_async(layout_.staged[k] + offset_ + i * offset_step_, inputs[k] + global_ + i * global_step_);
      close_copy_group();
    }
  }

  /// Calls `body(values)` for the pieces as they arrive.
  template <class Body>
  __device__ __forceinline__ void walk_arriving(Body&& body) const {
    const int part = (count_ + resident_stages - 1) / resident_stages;
    walk_stage<0>(part, body);
  }

  /// Calls `body(global offset, values)` for the pieces.
  template <class Body>
  __device__ __forceinline__ void walk(Body&& body) const {
#pragma unroll 2
    for (int i = 0; i < count_; ++i) {
      Number values[Inputs][Vector];
      load(i, values);
      body(global_ + i * global_step_, values);
    }
  }

 private:
  __device__ __forceinline__ void load(int i, Number (&values)[Inputs][Vector]) const {
#pragma unroll
    for (int k = 0; k < Inputs; ++k) load_numbers<Vector>(layout_.staged[k] + offset_ + i * offset_step_, values[k]);
  }
  template <int Stage, class Body>
  __device__ __forceinline__ void walk_stage(int part, Body&& body) const {
    wait_for_groups<resident_stages - 1 - Stage>();
#pragma unroll 2
    for (int i = Stage * part; i < min((Stage + 1) * part, count_); ++i) {
      Number values[Inputs][Vector];
      load(i, values);
      body(values);
    }
    if constexpr (Stage + 1 < resident_stages) walk_stage<Stage + 1>(part, body);
  }

  const ResidentLayout<Inputs, T>& layout_;
  int count_, offset_, offset_step_;
  index_t global_, global_step_;
};

/// Sends two numbers of a group (number `local` of the tile) to all blocks of the cluster, which have begun.
__device__ __forceinline__ void send_to_cluster(double* exchanged, const GroupNormLaunch& g, index_t local, index_t lane, index_t lanes,
                                                double first, double second) {
  double* own = exchanged + (blockIdx.x * (g.tile / g.width()) + local) * 2;
  for (index_t block = lane; block < g.chunks; block += lanes) {
    double* to = g.chunks > 1 ? in_cluster_block(own, static_cast<unsigned>(block)) : own;
    to[0] = first;
    to[1] = second;
  }
}
/// What was sent is there for all blocks of the cluster.
__device__ __forceinline__ void meet_cluster(const GroupNormLaunch& g) {
  if (g.chunks > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
}

template <int Vector, class T>
__global__ void __launch_bounds__(norm_block_threads, 2)
    group_norm_resident_kernel(const __grid_constant__ GroupNormLaunch g, double epsilon, const T* x, const T* weight, const T* bias,
                               T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation) {
  using Number = compute_t<T>;
  if (g.chunks > 1) cluster_arrive();
  const ResidentLayout<1, T> layout(g);
  const ResidentPieces<Vector, 1, T> pieces(g, layout);
  pieces.fetch({x});
  const index_t channel = first_channel<Vector>(g);
  Number sum[Vector] = {}, squares[Vector] = {};
  {
    Number origin[Vector] = {};
    if (channel < g.c) load_numbers<Vector>(x + (blockIdx.z * g.spatial + blockIdx.x * g.chunk) * g.c + channel, origin);
    pieces.walk_arriving([&](const Number(&value)[1][Vector]) {
#pragma unroll
      for (int i = 0; i < Vector; ++i) {
        const Number distance = value[0][i] - origin[i];
        sum[i] += distance;
        squares[i] += distance * distance;
      }
    });
  }
  const RowSums<Vector, Number> rows(layout.sums, sum, squares);
  if (g.chunks > 1) cluster_wait();  // the other blocks have begun
  const auto pixels = [&](index_t chunk) { return min(g.spatial, (chunk + 1) * g.chunk) - chunk * g.chunk; };
  const index_t groups = g.tile / g.width();
  for_groups_of_tile(g, [&](index_t, index_t at, index_t lane, index_t lanes) {
    const ChunkStatistics<Vector, T> own(g, layout.staged[0] + at, rows, pixels(blockIdx.x), at, lane, lanes);
    send_to_cluster(layout.exchanged, g, at / g.width(), lane, lanes, own.mean, own.squares);
  });
  meet_cluster(g);
  for_groups_of_tile(g, [&](index_t group, index_t at, index_t lane, index_t lanes) {
    const index_t local = at / g.width();
    const auto statistics = [&](index_t chunk) { return layout.exchanged + (chunk * groups + local) * 2; };
    double total = 0, spread = 0;
    for (index_t chunk = lane; chunk < g.chunks; chunk += lanes) total += statistics(chunk)[0] * static_cast<double>(pixels(chunk));
    const double center = sum_of_lanes(total, lanes) / static_cast<double>(g.spatial);
    for (index_t chunk = lane; chunk < g.chunks; chunk += lanes) {  // as group_norm_join_kernel
      const double distance = statistics(chunk)[0] - center;
      spread += statistics(chunk)[1] + static_cast<double>(pixels(chunk) * g.width()) * distance * distance;
    }
    spread = sum_of_lanes(spread, lanes);
    if (lane != 0) return;
    const double variance = ::fmax(spread, 0.0) / static_cast<double>(g.spatial * g.width());
    const auto inverse = static_cast<Number>(1 / ::sqrt(variance + epsilon)), rounded = static_cast<Number>(center);
    Number* to = layout.group_numbers + local * 3;
    to[0] = rounded;
    to[1] = static_cast<Number>(center - static_cast<double>(rounded));
    to[2] = inverse;
    if (blockIdx.x != 0) return;
    mean[blockIdx.z * g.groups + group] = rounded;
    inverse_deviation[blockIdx.z * g.groups + group] = inverse;
  });
  __syncthreads();
  if (channel >= g.c) return;
  Number center[Vector], scale[Vector], shift[Vector];
  load_numbers<Vector>(weight + channel, scale);
  load_numbers<Vector>(bias + channel, shift);
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    const Number* of_group = layout.group_numbers + (g.group_of(channel + i) - g.group_of(blockIdx.y * g.tile)) * 3;
    center[i] = of_group[0];
    scale[i] *= of_group[2];
    shift[i] -= of_group[1] * scale[i];
  }
  pieces.walk([&](index_t offset, const Number(&value)[1][Vector]) {
    Number out[Vector];
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number z = (value[0][i] - center[i]) * scale[i] + shift[i];
      out[i] = g.silu ? z * sigmoid_number(z) : z;
    }
    store_numbers<Vector>(y + offset, out);
  });
}

/// channel_sums[image, chunk, channel] (may be null) = sums of dz and dz * hat, as in group_norm_gradient_sums_kernel.
template <int Vector, class T>
__global__ void __launch_bounds__(norm_block_threads, 2)
    group_norm_resident_gradient_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, const T* weight, const T* bias,
                                        const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                                        bool accumulate, compute_t<T>* channel_sums) {
  using Number = compute_t<T>;
  if (g.chunks > 1) cluster_arrive();
  const ResidentLayout<2, T> layout(g);
  const ResidentPieces<Vector, 2, T> pieces(g, layout);
  pieces.fetch({x, dy});
  const index_t channel = first_channel<Vector>(g), start = static_cast<index_t>(blockIdx.y) * g.tile;
  const index_t first_group = blockIdx.z * g.groups;
  Number center[Vector] = {}, scale[Vector] = {}, shift[Vector] = {};
  if (channel < g.c) {
    load_numbers<Vector>(weight + channel, scale);
    load_numbers<Vector>(bias + channel, shift);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const index_t group = first_group + g.group_of(channel + i);
      center[i] = mean[group];
      scale[i] *= inverse_deviation[group];
    }
  }
  const auto slope = [&](int i, Number distance, Number gradient) {
    return g.silu ? gradient * silu_slope(distance * scale[i] + shift[i]) : gradient;
  };
  Number plain[Vector] = {}, along[Vector] = {};  // sums of dz and of dz (x - mean)
  pieces.walk_arriving([&](const Number(&value)[2][Vector]) {
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number distance = value[0][i] - center[i], dz = slope(i, distance, value[1][i]);
      plain[i] += dz;
      along[i] += dz * distance;
    }
  });
  const RowSums<Vector, Number> rows(layout.sums, plain, along);
  if (g.chunks > 1) cluster_wait();  // the other blocks have begun
  for_groups_of_tile(g, [&](index_t group, index_t at, index_t lane, index_t lanes) {
    Number sums[2] = {};
    for (index_t i = lane; i < g.width(); i += lanes)
      for (int which = 0; which < 2; ++which) sums[which] += widen(weight[start + at + i]) * rows.sums[which][at + i];
    const Number inverse = inverse_deviation[first_group + group];
    const Number first = sum_of_lanes(sums[0], lanes), second = sum_of_lanes(sums[1], lanes) * inverse;
    send_to_cluster(layout.exchanged, g, at / g.width(), lane, lanes, static_cast<double>(first), static_cast<double>(second));
  });
  if (channel_sums != nullptr) {
    const index_t thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (index_t at = thread; at < min(g.tile, g.c - start); at += blockDim.x * blockDim.y) {
      Number* to = channel_sums + ((blockIdx.z * g.chunks + blockIdx.x) * g.c + start + at) * 2;
      to[0] = rows.sums[0][at];
      to[1] = rows.sums[1][at] * inverse_deviation[first_group + g.group_of(start + at)];
    }
  }
  meet_cluster(g);
  for_groups_of_tile(g, [&](index_t group, index_t at, index_t lane, index_t lanes) {
    const index_t local = at / g.width(), groups = g.tile / g.width();
    const double elements = static_cast<double>(g.spatial * g.width());
    double sums[2] = {};
    for (index_t chunk = lane; chunk < g.chunks; chunk += lanes)
      for (int which = 0; which < 2; ++which) sums[which] += layout.exchanged[(chunk * groups + local) * 2 + which];
    for (int which = 0; which < 2; ++which) sums[which] = sum_of_lanes(sums[which], lanes) / elements;
    if (lane != 0) return;
    const Number inverse = inverse_deviation[first_group + group];
    layout.group_numbers[local * 3] = static_cast<Number>(sums[0]) * inverse;
    layout.group_numbers[local * 3 + 1] = static_cast<Number>(sums[1]) * inverse * inverse;
  });
  __syncthreads();
  if (channel >= g.c) return;
  // dx = inverse (dz weight - mean of dz weight - hat * mean of dz weight hat)
  Number of_plain[Vector], of_along[Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    const Number* of_group = layout.group_numbers + (g.group_of(channel + i) - g.group_of(start)) * 3;
    of_plain[i] = of_group[0];
    of_along[i] = of_group[1];
  }
  pieces.walk([&](index_t offset, const Number(&value)[2][Vector]) {
    Number out[Vector], old[Vector] = {};
    if (accumulate) load_numbers<Vector>(dx + offset, old);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number distance = value[0][i] - center[i], dz = slope(i, distance, value[1][i]);
      out[i] = dz * scale[i] - of_plain[i] - distance * of_along[i] + old[i];
    }
    store_numbers<Vector>(dx + offset, out);
  });
}

/// A launch whose clusters hold `inputs` tensors of T, tile by tile; `chunks` is 0 where that does not fit. `clusters`: whether
/// they may have more than one block.
template <class T>
GroupNormGrid resident_grid(Context<Cuda>& context, const kernel::GroupNormShape& s, int inputs, bool clusters) {
  constexpr index_t vector = 16 / static_cast<index_t>(sizeof(T));
  GroupNormGrid launch;
  auto& g = launch.sizes;
  g.spatial = s.spatial, g.c = s.c, g.groups = s.groups, g.silu = s.silu;
  // Whole groups, whole vectors, and at least two sectors of 32 bytes side by side.
  const index_t unit = std::lcm(vector, g.width());
  g.tile = std::min(g.c, unit * std::max<index_t>(1, 4 * vector / unit));
  if (g.tile > norm_block_threads * vector || s.n > 65535 || g.spatial > (index_t{1} << 30) / g.c) return launch;
  const index_t columns = (g.tile + vector - 1) / vector, rows = std::min(norm_block_threads / columns, s.spatial);
  const index_t threads = rows * columns, tiles = (g.c + g.tile - 1) / g.tile;
  const auto bytes_with = [&](index_t chunks) {
    g.chunk = (s.spatial + chunks - 1) / chunks, g.chunks = chunks;
    return resident_bytes<T>(g, inputs, threads);
  };
  // The fewest blocks that leave room for a second one on the multiprocessor, whose copies run beside this one's arithmetic.
  const index_t most = clusters ? most_cluster_blocks : 1, all = context.shared_memory(), half = (all - 2048) / 2;
  index_t chunks = 1;
  while (chunks < most && bytes_with(chunks) > half) chunks *= 2;
  while (chunks < most && s.n * tiles * chunks < 2 * context.multiprocessors() && s.spatial >= 8 * rows * chunks) chunks *= 2;
  while (chunks > 1 && (chunks - 1) * ((s.spatial + chunks - 1) / chunks) >= s.spatial) chunks /= 2;  // none without pixels
  if (bytes_with(chunks) > all) {
    g.chunks = 0;
    return launch;
  }
  launch.grid = dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(tiles), static_cast<unsigned>(s.n));
  launch.block = dim3(static_cast<unsigned>(columns), static_cast<unsigned>(rows));
  launch.shared = static_cast<std::size_t>(resident_bytes<T>(g, inputs, threads));
  return launch;
}

/// Whether it was launched.
template <class T>
bool group_norm_resident(Context<Cuda>& context, const kernel::GroupNormShape& shape, const T* x, const T* weight, const T* bias, T* y,
                         compute_t<T>* mean, compute_t<T>* inverse_deviation) {
  const auto kernel = group_norm_resident_kernel<16 / static_cast<int>(sizeof(T)), T>;
  const auto l = resident_grid<T>(context, shape, 1, has_clusters(kernel));
  if (l.sizes.chunks == 0) return false;
  context.launch("group_norm_resident_kernel", {l.grid, l.block, l.shared, l.grid.x}, kernel, l.sizes,
                 static_cast<double>(shape.epsilon), x, weight, bias, y, mean, inverse_deviation);
  return true;
}

/// Whether it was launched; dx is wanted. With `wants_weights` calls `write_weights(rows, sums)` for sums[rows, c, 2].
template <class T, class WriteWeights>
bool group_norm_resident_gradient(Context<Cuda>& context, const kernel::GroupNormShape& shape, const T* x, const T* weight,
                                  const T* bias, const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                                  bool accumulate, bool wants_weights, WriteWeights&& write_weights) {
  const auto kernel = group_norm_resident_gradient_kernel<16 / static_cast<int>(sizeof(T)), T>;
  const auto l = resident_grid<T>(context, shape, 2, has_clusters(kernel));
  if (l.sizes.chunks == 0) return false;
  const index_t rows = shape.n * l.sizes.chunks;
  Scratch<Cuda> scratch(context);
  auto* channel_sums = wants_weights ? scratch.template allocate<compute_t<T>>(rows * shape.c * 2) : nullptr;
  context.launch("group_norm_resident_gradient_kernel", {l.grid, l.block, l.shared, l.grid.x}, kernel, l.sizes, x, weight, bias, mean,
                 inverse_deviation, dy, dx, accumulate, channel_sums);
  if (wants_weights) write_weights(rows, channel_sums);
  return true;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
