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
    for (int k = 0; k < Inputs; ++k, at += g.chunk * g.tile * static_cast<index_t>(sizeof(T))) staged[k] = reinterpret_cast<T*>(at);
    exchanged = reinterpret_cast<double*>(at);
    at += g.chunks * g.tile_groups * 16;
    sums = reinterpret_cast<compute_t<T>*>(at);
    group_numbers = sums + row_sums_numbers(static_cast<int>(blockDim.x * blockDim.y), 16 / static_cast<int>(sizeof(T)));
  }
};
template <class T>
index_t resident_bytes(const GroupNormLaunch& g, int inputs, index_t threads) {
  const index_t number = sizeof(compute_t<T>);
  return inputs * g.chunk * g.tile * static_cast<index_t>(sizeof(T)) + g.chunks * g.tile_groups * 16 +
         row_sums_numbers(threads, 16 / static_cast<int>(sizeof(T))) * number + g.tile_groups * 3 * number;
}

/// This thread's pieces of the chunk: 16 bytes of a pixel, in every blockDim.y-th one.
template <int Vector, int Inputs, class T>
class ResidentPieces {
 public:
  using Number = compute_t<T>;

  __device__ __forceinline__ ResidentPieces(const GroupNormLaunch& g, const ResidentLayout<Inputs, T>& layout) : layout_(layout) {
    const int pixels = static_cast<int>(g.pixels_of(blockIdx.x)), row = static_cast<int>(threadIdx.y);
    const int step = static_cast<int>(blockDim.y);
    const bool inside = first_channel<Vector>(g) < g.c;
    count_ = inside && row < pixels ? (pixels - row + step - 1) / step : 0;
    offset_ = row * g.tile + static_cast<int>(threadIdx.x) * Vector;
    offset_step_ = step * g.tile;
    global_ = (blockIdx.z * g.spatial + blockIdx.x * g.chunk + row) * g.c + first_channel<Vector>(g);
    global_step_ = step * g.c;
  }

  /// Starts all copies, in resident_stages groups. Loops stay loops here and below: what is executed once per block would be
  /// fetched for longer than it runs.
  __device__ __forceinline__ void fetch(const T* const (&inputs)[Inputs]) const {
    int i = 0;
#pragma unroll 1
    for (int stage = 0; stage < resident_stages; ++stage) {
#pragma unroll 1
      for (const int end = end_of(stage); i < end; ++i)
#pragma unroll
        for (int k = 0; k < Inputs; ++k)
          copy_16_async(layout_.staged[k] + offset_ + i * offset_step_, inputs[k] + global_ + i * global_step_);
      close_copy_group();
    }
  }

  /// Calls `body(values)` for the pieces as they arrive.
  template <class Body>
  __device__ __forceinline__ void walk_arriving(Body&& body) const {
    int i = 0;
#pragma unroll 1
    for (int stage = 0; stage < resident_stages; ++stage) {
      wait_for_stage<0>(stage);
#pragma unroll 1
      for (const int end = end_of(stage); i < end; ++i) {
        Number values[Inputs][Vector];
        load(i, values);
        body(values);
      }
    }
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
  __device__ __forceinline__ int end_of(int stage) const {
    return min((stage + 1) * ((count_ + resident_stages - 1) / resident_stages), count_);
  }
  template <int Stage>
  __device__ __forceinline__ void wait_for_stage(int stage) const {
    if constexpr (Stage < resident_stages) {
      if (stage == Stage)
        wait_for_groups<resident_stages - 1 - Stage>();
      else
        wait_for_stage<Stage + 1>(stage);
    }
  }
  __device__ __forceinline__ void load(int i, Number (&values)[Inputs][Vector]) const {
#pragma unroll
    for (int k = 0; k < Inputs; ++k) load_numbers<Vector>(layout_.staged[k] + offset_ + i * offset_step_, values[k]);
  }

  const ResidentLayout<Inputs, T>& layout_;
  int count_, offset_, offset_step_;
  index_t global_, global_step_;
};

/// Sends two numbers of a group (number `local` of the tile) to all blocks of the cluster, which have begun; a lane to each.
__device__ __forceinline__ void send_to_cluster(double* exchanged, const GroupNormLaunch& g, int local, int lane, double first,
                                                double second) {
  static_assert(most_cluster_blocks <= group_lanes);
  if (lane >= g.chunks) return;
  double* to = exchanged + (static_cast<int>(blockIdx.x) * g.tile_groups + local) * 2;
  if (g.chunks > 1) to = in_cluster_block(to, static_cast<unsigned>(lane));
  to[0] = first;
  to[1] = second;
}
/// What was sent is there for all blocks of the cluster.
__device__ __forceinline__ void meet_cluster(const GroupNormLaunch& g) {
  if (g.chunks == 1) return __syncthreads();
  cluster_arrive();  // by all, though few have written: with two kinds of arrival in one warp the cluster hung
  cluster_wait();
}

template <int Vector, class T>
__global__ void __launch_bounds__(norm_block_threads, 2)
    group_norm_resident_kernel(const __grid_constant__ GroupNormLaunch g, double epsilon, const T* x, const T* weight, const T* bias,
                               T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation) {
  using Number = compute_t<T>;
  if (g.chunks > 1) cluster_arrive_relaxed();
  const ResidentLayout<1, T> layout(g);
  const ResidentPieces<Vector, 1, T> pieces(g, layout);
  pieces.fetch({x});
  const index_t channel = first_channel<Vector>(g);
  NumberVector<T, Vector> weights{}, biases{};  // fetched before they are needed
  if (channel < g.c) {
    weights = *reinterpret_cast<const NumberVector<T, Vector>*>(weight + channel);
    biases = *reinterpret_cast<const NumberVector<T, Vector>*>(bias + channel);
  }
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
  for_groups_of_tile(g, [&](int, int local, int lane) {
    const int at = local * g.width;
    const ChunkStatistics<Vector, T> own(g, layout.staged[0] + at, rows, g.pixels_of(blockIdx.x), at, lane);
    send_to_cluster(layout.exchanged, g, local, lane, own.mean, own.squares);
  });
  meet_cluster(g);
  for_groups_of_tile(g, [&](int group, int local, int lane) {
    const double* statistics = layout.exchanged + (lane * g.tile_groups + local) * 2;
    const bool there = lane < g.chunks;
    const double pixels = there ? static_cast<double>(g.pixels_of(lane)) : 0.0, own_mean = there ? statistics[0] : 0.0;
    const double center = sum_of_lanes(own_mean * pixels) * (g.per_element * g.width);
    const double distance = own_mean - center;  // joined as in group_norm_join_kernel
    const double spread = sum_of_lanes((there ? statistics[1] : 0.0) + pixels * g.width * distance * distance);
    if (lane != 0) return;
    const auto variance = static_cast<Number>(::fmax(spread, 0.0) * g.per_element + epsilon);
    const Number inverse = 1 / ::sqrt(variance), rounded = static_cast<Number>(center);
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
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    const Number* of_group = layout.group_numbers + g.group_of(static_cast<int>(threadIdx.x) * Vector + i) * 3;
    center[i] = of_group[0];
    scale[i] = widen(weights.at[i]) * of_group[2];
    shift[i] = widen(biases.at[i]) - of_group[1] * scale[i];
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
  if (g.chunks > 1) cluster_arrive_relaxed();
  const ResidentLayout<2, T> layout(g);
  const ResidentPieces<Vector, 2, T> pieces(g, layout);
  pieces.fetch({x, dy});
  const index_t channel = first_channel<Vector>(g), start = static_cast<index_t>(blockIdx.y) * static_cast<index_t>(g.tile);
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
  for_groups_of_tile(g, [&](int group, int local, int lane) {
    const int at = local * g.width;
    Number sums[2] = {};
#pragma unroll 1
    for (int i = lane; i < g.width; i += group_lanes)
#pragma unroll
      for (int which = 0; which < 2; ++which) sums[which] += widen(weight[start + at + i]) * rows.sums[which][at + i];
    const Number inverse = inverse_deviation[first_group + group];
    const Number first = sum_of_lanes(sums[0]), second = sum_of_lanes(sums[1]) * inverse;
    send_to_cluster(layout.exchanged, g, local, lane, static_cast<double>(first), static_cast<double>(second));
  });
  if (channel_sums != nullptr) {
    const index_t thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll 1
    for (index_t at = thread; at < min(static_cast<index_t>(g.tile), g.c - start); at += blockDim.x * blockDim.y) {
      Number* to = channel_sums + ((blockIdx.z * g.chunks + blockIdx.x) * g.c + start + at) * 2;
      to[0] = rows.sums[0][at];
      to[1] = rows.sums[1][at] * inverse_deviation[first_group + g.group_of(start + at)];
    }
  }
  meet_cluster(g);
  for_groups_of_tile(g, [&](int group, int local, int lane) {
    const double* sums = layout.exchanged + (lane * g.tile_groups + local) * 2;
    const double first = sum_of_lanes(lane < g.chunks ? sums[0] : 0.0), second = sum_of_lanes(lane < g.chunks ? sums[1] : 0.0);
    if (lane != 0) return;
    const Number inverse = inverse_deviation[first_group + group];
    layout.group_numbers[local * 3] = static_cast<Number>(first * g.per_element) * inverse;
    layout.group_numbers[local * 3 + 1] = static_cast<Number>(second * g.per_element) * inverse * inverse;
  });
  __syncthreads();
  if (channel >= g.c) return;
  // dx = inverse (dz weight - mean of dz weight - hat * mean of dz weight hat)
  Number of_plain[Vector], of_along[Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    const Number* of_group = layout.group_numbers + g.group_of(static_cast<int>(threadIdx.x) * Vector + i) * 3;
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

/// A launch whose clusters hold Inputs tensors of T, tile by tile; `chunks` is 0 where that does not fit. `clusters`: whether
/// they may have more than one block.
template <int Inputs, class T>
GroupNormGrid resident_grid(Context<Cuda>& context, const kernel::GroupNormShape& s, bool clusters) {
  constexpr index_t vector = 16 / static_cast<index_t>(sizeof(T)), threads = norm_block_threads;
  GroupNormGrid launch;
  auto& g = launch.sizes = GroupNormLaunch(s);
  const index_t unit = std::lcm(vector, static_cast<index_t>(g.width)), most = clusters ? most_cluster_blocks : 1;
  if (unit > threads * vector || s.n > 65535) return launch;
  index_t columns = 0, rows = 0, tiles = 0;
  const auto bytes_with = [&](index_t chunks) {
    g.set_chunks(chunks);
    return resident_bytes<T>(g, Inputs, rows * columns);
  };
  const auto take_tile = [&](index_t channels) {
    g.set_tile(std::min(g.c, channels));
    columns = g.tile / vector, rows = threads / columns, tiles = (g.c + g.tile - 1) / g.tile;
  };
  // Whole groups and whole vectors; and whole sectors of 32 bytes, two or more, where the blocks stay small enough for a second
  // one on the multiprocessor, whose copies run beside this one's arithmetic.
  const index_t all = context.shared_memory(), half = (all - 2048) / 2;
  const index_t sectors = std::lcm(unit, 2 * vector);
  take_tile(std::min(threads * vector / unit * unit, std::max(sectors, 4 * vector / sectors * sectors)));
  if (bytes_with(most) > half) take_tile(unit);
  index_t chunks = 1;
  while (chunks < most && bytes_with(chunks) > half) chunks *= 2;
  while (chunks < most && s.n * tiles * chunks < 2 * context.multiprocessors() && s.spatial >= 8 * rows * chunks) chunks *= 2;
  launch.shared = static_cast<std::size_t>(bytes_with(chunks));  // g.chunks is smaller where some would have no pixel
  if (launch.shared > static_cast<std::size_t>(all)) {
    g.chunks = 0;
    return launch;
  }
  chunks = g.chunks;
  launch.grid = dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(tiles), static_cast<unsigned>(s.n));
  launch.block = dim3(static_cast<unsigned>(columns), static_cast<unsigned>(rows));
  return launch;
}

/// Whether it was launched.
template <class T>
bool group_norm_resident(Context<Cuda>& context, const kernel::GroupNormShape& shape, const T* x, const T* weight, const T* bias, T* y,
                         compute_t<T>* mean, compute_t<T>* inverse_deviation) {
  const auto kernel = group_norm_resident_kernel<16 / static_cast<int>(sizeof(T)), T>;
  const auto l = resident_grid<1, T>(context, shape, has_clusters(kernel));
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
  const auto l = resident_grid<2, T>(context, shape, has_clusters(kernel));
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
