// SPDX-License-Identifier: MIT
// Group norm of CUDA devices, channels last, with SiLU in the same pass; forward and backward without atomics.
#pragma once

#include <lpo/backend/cuda/group_norm_resident.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// Formula: hat = (x - mean) * inverse_deviation, z = hat * weight + bias, y = z or silu(z); statistics over (spatial, c / groups).
// What fits on chip is read once, by the kernels of group_norm_resident.cuh; the ones here walk it twice.
// Launch: blockIdx = (chunk of pixels, tile of channels, image); a tile holds whole groups. A block has a column of threads per
//   Vector channels of its tile, and rows of threads that share the chunk's pixels. The first kernel leaves each group's
//   statistics per chunk, a second one (a warp per group) joins the chunks, the third writes.
// Memory: x is read twice forward, x and dy twice backward, the second time from the end: what is still in L2 first.
// Numerics: chunk statistics in float about the chunk's first pixel, joined in double, and the mean in two parts: a large mean
//   costs nothing.
// Limits: n below 65536, c below 2^32.

/// chunk_statistics[image, group, chunk] = (mean, sum of squared distances from it) over the chunk's pixels.
template <int Vector, class T>
__global__ void __launch_bounds__(norm_block_threads)
    group_norm_statistics_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, double* chunk_statistics) {
  using Number = compute_t<T>;
  const index_t channel = first_channel<Vector>(g), first = blockIdx.x * g.chunk;
  const T* origin_pixel = x + (blockIdx.z * g.spatial + first) * g.c;
  Number sum[Vector] = {}, squares[Vector] = {};
  if (channel < g.c) {
    Number origin[Vector];
    load_numbers<Vector>(origin_pixel + channel, origin);
    for_pixels_of_chunk<Vector>(g, channel, {x}, [&](index_t, const Number(&value)[1][Vector]) {
#pragma unroll
      for (int i = 0; i < Vector; ++i) {
        const Number distance = value[0][i] - origin[i];
        sum[i] += distance;
        squares[i] += distance * distance;
      }
    });
  }
  const RowSums<Vector, Number> rows(launched_numbers<Number>(), sum, squares);
  for_groups_of_tile(g, [&](int group, int local, int lane) {
    const ChunkStatistics<Vector, T> statistics(g, origin_pixel + group * g.width, rows, g.pixels_of(blockIdx.x), local * g.width,
                                                lane);
    if (lane != 0) return;
    double* to = chunk_statistics + ((blockIdx.z * g.groups + group) * g.chunks + blockIdx.x) * 2;
    to[0] = statistics.mean;
    to[1] = statistics.squares;
  });
}

/// A warp per (image, group) joins the chunks (Chan, Golub and LeVeque 1979). `mean_rest` is what `mean` lost to rounding.
template <class Number>
__global__ void __launch_bounds__(128)
    group_norm_join_kernel(const __grid_constant__ GroupNormLaunch g, index_t count, double epsilon, const double* chunk_statistics,
                           Number* mean, Number* mean_rest, Number* inverse_deviation) {
  const index_t which = static_cast<index_t>(blockIdx.x) * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (which >= count) return;
  const double* statistics = chunk_statistics + which * g.chunks * 2;
  const auto pixels = [&](index_t chunk) { return static_cast<double>(g.pixels_of(chunk)); };
  double sum = 0;
  for (index_t chunk = lane; chunk < g.chunks; chunk += 32) sum += statistics[chunk * 2] * pixels(chunk);
  const double center = warp_sum(sum) / static_cast<double>(g.spatial);
  double squares = 0;
  for (index_t chunk = lane; chunk < g.chunks; chunk += 32) {
    const double distance = statistics[chunk * 2] - center;
    squares += statistics[chunk * 2 + 1] + pixels(chunk) * g.width * distance * distance;
  }
  squares = warp_sum(squares);
  if (lane != 0) return;
  const double variance = ::fmax(squares, 0.0) * g.per_element;
  mean[which] = static_cast<Number>(center);
  mean_rest[which] = static_cast<Number>(center - static_cast<double>(static_cast<Number>(center)));
  inverse_deviation[which] = static_cast<Number>(1 / ::sqrt(variance + epsilon));
}

/// What a thread knows of its Vector channels.
template <int Vector, class T>
struct NormChannels {
  using Number = compute_t<T>;
  Number mean[Vector], rest[Vector], inverse[Vector], weight[Vector], bias[Vector];

  __device__ __forceinline__ NormChannels(const GroupNormLaunch& g, index_t channel, const T* weights, const T* biases,
                                          const Number* means, const Number* rests, const Number* inverses) {
    load_numbers<Vector>(weights + channel, weight);
    load_numbers<Vector>(biases + channel, bias);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const index_t group = blockIdx.z * g.groups + g.group_of(channel + i);
      mean[i] = means[group];
      rest[i] = rests == nullptr ? Number{} : rests[group];
      inverse[i] = inverses[group];
    }
  }
  __device__ __forceinline__ Number hat(int i, Number x) const { return ((x - mean[i]) - rest[i]) * inverse[i]; }
  __device__ __forceinline__ Number z(int i, Number hat) const { return hat * weight[i] + bias[i]; }
};

template <int Vector, class T>
__global__ void __launch_bounds__(norm_block_threads)
    group_norm_write_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, const T* weight, const T* bias,
                            const compute_t<T>* mean, const compute_t<T>* mean_rest, const compute_t<T>* inverse_deviation, T* y) {
  using Number = compute_t<T>;
  const index_t channel = first_channel<Vector>(g);
  if (channel >= g.c) return;
  const NormChannels<Vector, T> channels(g, channel, weight, bias, mean, mean_rest, inverse_deviation);
  for_pixels_of_chunk<Vector, true>(g, channel, {x}, [&](index_t offset, const Number(&value)[1][Vector]) {
    Number out[Vector];
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number z = channels.z(i, channels.hat(i, value[0][i]));
      out[i] = g.silu ? z * sigmoid_number(z) : z;
    }
    store_numbers<Vector>(y + offset, out);
  });
}

/// group_sums[image, group, chunk] = sums of weight * dz and weight * dz * hat, dz being the gradient of z; channel_sums[image,
/// chunk, channel] (may be null) = sums of dz and dz * hat.
template <int Vector, class T>
__global__ void __launch_bounds__(norm_block_threads)
    group_norm_gradient_sums_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, const T* weight, const T* bias,
                                    const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy,
                                    double* group_sums, compute_t<T>* channel_sums) {
  using Number = compute_t<T>;
  const index_t channel = first_channel<Vector>(g);
  Number plain[Vector] = {}, along[Vector] = {};
  if (channel < g.c) {
    const NormChannels<Vector, T> channels(g, channel, weight, bias, mean, nullptr, inverse_deviation);
    for_pixels_of_chunk<Vector>(g, channel, {x, dy}, [&](index_t, const Number(&value)[2][Vector]) {
#pragma unroll
      for (int i = 0; i < Vector; ++i) {
        const Number hat = channels.hat(i, value[0][i]);
        const Number dz = g.silu ? value[1][i] * silu_slope(channels.z(i, hat)) : value[1][i];
        plain[i] += dz;
        along[i] += dz * hat;
      }
    });
  }
  const RowSums<Vector, Number> rows(launched_numbers<Number>(), plain, along);
  const index_t start = static_cast<index_t>(blockIdx.y) * static_cast<index_t>(g.tile);
  for_groups_of_tile(g, [&](int group, int local, int lane) {
    const int at = local * g.width;
    Number sums[2] = {};
    for (int i = lane; i < g.width; i += group_lanes)
      for (int which = 0; which < 2; ++which) sums[which] += widen(weight[start + at + i]) * rows.sums[which][at + i];
    double* to = group_sums + ((blockIdx.z * g.groups + group) * g.chunks + blockIdx.x) * 2;
    for (int which = 0; which < 2; ++which) {
      const Number total = sum_of_lanes(sums[which]);
      if (lane == 0) to[which] = static_cast<double>(total);
    }
  });
  if (channel_sums == nullptr) return;
  const index_t thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (index_t at = thread; at < min(static_cast<index_t>(g.tile), g.c - start); at += blockDim.x * blockDim.y) {
    Number* to = channel_sums + ((blockIdx.z * g.chunks + blockIdx.x) * g.c + start + at) * 2;
    to[0] = rows.sums[0][at];
    to[1] = rows.sums[1][at];
  }
}

/// A warp per (image, group): group_means = means over the group's elements of weight * dz and weight * dz * hat.
template <class Number>
__global__ void __launch_bounds__(128)
    group_norm_gradient_join_kernel(const __grid_constant__ GroupNormLaunch g, index_t count, const double* group_sums,
                                    Number* group_means) {
  const index_t which = static_cast<index_t>(blockIdx.x) * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (which >= count) return;
  double sums[2] = {};
  for (index_t chunk = lane; chunk < g.chunks; chunk += 32)
    for (int part = 0; part < 2; ++part) sums[part] += group_sums[(which * g.chunks + chunk) * 2 + part];
  for (int part = 0; part < 2; ++part) {
    const double total = warp_sum(sums[part]);
    if (lane == 0) group_means[which * 2 + part] = static_cast<Number>(total * g.per_element);
  }
}

/// Rows of threads of norm_weights_kernel: its few blocks wait for memory, so that many threads share the rows of a channel.
inline constexpr int norm_weights_rows = 32;

/// dbias and dweight (+)= the two sums of every channel over the `rows` of sums[rows, c, 2], in a fixed order: rows of threads
/// share the rows of 32 channels.
template <class T, class Number>
__global__ void __launch_bounds__(32 * norm_weights_rows)
    norm_weights_kernel(index_t rows, index_t c, const Number* sums, T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias) {
  __shared__ double shared[2][norm_weights_rows][32];
  const int lane = static_cast<int>(threadIdx.x), share = static_cast<int>(threadIdx.y);
  const index_t channel = static_cast<index_t>(blockIdx.x) * 32 + lane;
  double totals[2] = {};
  if (channel < c) {
#pragma unroll 8
    for (index_t row = share; row < rows; row += norm_weights_rows) {
      Number both[2];
      load_numbers<2>(sums + (row * c + channel) * 2, both);
      totals[0] += static_cast<double>(both[0]);
      totals[1] += static_cast<double>(both[1]);
    }
  }
  for (int which = 0; which < 2; ++which) shared[which][share][lane] = totals[which];
  __syncthreads();
  if (share > 1 || channel >= c) return;  // a warp for each of the two
  T* const to = share == 0 ? dbias : dweight;
  if (to == nullptr) return;
  double total = (share == 0 ? accumulate_bias : accumulate_weight) ? static_cast<double>(widen(to[channel])) : 0.0;
#pragma unroll 8
  for (int other = 0; other < norm_weights_rows; ++other) total += shared[share][other][lane];
  to[channel] = narrow<T>(static_cast<compute_t<T>>(total));
}

template <int Vector, class T>
__global__ void __launch_bounds__(norm_block_threads)
    group_norm_dx_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, const T* weight, const T* bias,
                         const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const compute_t<T>* group_means, const T* dy,
                         T* dx, bool accumulate) {
  using Number = compute_t<T>;
  const index_t channel = first_channel<Vector>(g);
  if (channel >= g.c) return;
  const NormChannels<Vector, T> channels(g, channel, weight, bias, mean, nullptr, inverse_deviation);
  Number plain[Vector], along[Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    const Number* means = group_means + (blockIdx.z * g.groups + g.group_of(channel + i)) * 2;
    plain[i] = means[0];
    along[i] = means[1];
  }
  for_pixels_of_chunk<Vector, true>(g, channel, {x, dy}, [&](index_t offset, const Number(&value)[2][Vector]) {
    Number out[Vector], old[Vector] = {};
    if (accumulate) load_numbers<Vector>(dx + offset, old);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number hat = channels.hat(i, value[0][i]);
      const Number dz = g.silu ? value[1][i] * silu_slope(channels.z(i, hat)) : value[1][i];
      out[i] = channels.inverse[i] * (dz * channels.weight[i] - plain[i] - hat * along[i]) + old[i];
    }
    store_numbers<Vector>(dx + offset, out);
  });
}

/// Tiles of whole groups and whole vectors that a block's threads cover, rows of threads to fill it, and chunks to fill the
/// device. `vector` is 1 or divides c.
inline GroupNormGrid group_norm_grid(Context<Cuda>& context, const kernel::GroupNormShape& s, int vector, std::size_t number_bytes) {
  GroupNormGrid launch;
  auto& g = launch.sizes = GroupNormLaunch(s);
  const index_t unit = std::lcm(static_cast<index_t>(vector), static_cast<index_t>(g.width)), most = norm_block_threads * vector;
  if (unit > most)
    throw ShapeError(message("[group_norm] groups of ", g.width, " channels; the CUDA backend covers at most ", most, " (",
                             g.c, " channels in ", g.groups, " groups)"));
  g.set_tile(std::min(g.c, most / unit * unit));
  const index_t columns = (g.tile + vector - 1) / vector, rows = norm_block_threads / columns;
  const index_t tiles = (g.c + g.tile - 1) / g.tile;
  const index_t wanted = std::max<index_t>(1, 6 * context.multiprocessors() / std::max<index_t>(1, s.n * tiles));
  g.set_chunks(std::clamp<index_t>(wanted, 1, std::max<index_t>(1, s.spatial / (8 * rows))));
  launch.grid = dim3(static_cast<unsigned>(g.chunks), static_cast<unsigned>(tiles), static_cast<unsigned>(s.n));
  launch.block = dim3(static_cast<unsigned>(columns), static_cast<unsigned>(rows));
  launch.shared = static_cast<std::size_t>(row_sums_numbers(rows * columns, vector)) * number_bytes;
  return launch;
}

}  // namespace detail

namespace kernel {

template <>
struct GroupNorm<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, const GroupNormShape& shape, const T* x, const T* weight, const T* bias, T* y,
                      compute_t<T>* mean, compute_t<T>* inverse_deviation) {
    if (shape.n * shape.spatial * shape.c <= 0) return;
    by_vectors<T>(shape, detail::common_alignment(x, weight, bias, y), [&](auto vector) {
      constexpr int width = decltype(vector)::value;
      if constexpr (width > 1)
        if (detail::group_norm_resident(context, shape, x, weight, bias, y, mean, inverse_deviation)) return;
      const auto l = detail::group_norm_grid(context, shape, width, sizeof(compute_t<T>));
      const auto& g = l.sizes;
      Scratch<Cuda> scratch(context);
      auto* statistics = scratch.template allocate<double>(shape.n * g.groups * g.chunks * 2);
      auto* mean_rest = scratch.template allocate<compute_t<T>>(shape.n * g.groups);
      context.launch("group_norm_statistics_kernel", {l.grid, l.block, l.shared}, detail::group_norm_statistics_kernel<width, T>, g,
                     x, statistics);
      const index_t count = shape.n * g.groups;
      context.launch("group_norm_join_kernel", {detail::blocks_for(count, 4), 128}, detail::group_norm_join_kernel<compute_t<T>>, g,
                     count, static_cast<double>(shape.epsilon), statistics, mean, mean_rest, inverse_deviation);
      context.launch("group_norm_write_kernel", {l.grid, l.block}, detail::group_norm_write_kernel<width, T>, g, x, weight, bias,
                     mean, mean_rest, inverse_deviation, y);
    });
  }

  template <class T>
  static void backward(Context<Cuda>& context, const GroupNormShape& shape, const T* x, const T* weight, const T* bias,
                       const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx, bool accumulate_x,
                       T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias) {
    if (shape.c <= 0) return;
    if (shape.n * shape.spatial <= 0) {  // sums over nothing
      const auto bytes = static_cast<std::size_t>(shape.c) * sizeof(T);
      if (dweight != nullptr && !accumulate_weight) context.fill_zero(dweight, bytes);
      if (dbias != nullptr && !accumulate_bias) context.fill_zero(dbias, bytes);
      return;
    }
    const bool wants_weights = dweight != nullptr || dbias != nullptr;
    by_vectors<T>(shape, detail::common_alignment(x, weight, bias, dy, dx), [&](auto vector) {
      constexpr int width = decltype(vector)::value;
      const auto write_weights = [&](index_t rows, const compute_t<T>* sums) {
        context.launch("norm_weights_kernel", {detail::blocks_for(shape.c, 32), dim3(32, detail::norm_weights_rows)},
                       detail::norm_weights_kernel<T, compute_t<T>>, rows, shape.c, sums, dweight, accumulate_weight, dbias,
                       accumulate_bias);
      };
      if constexpr (width > 1)
        if (dx != nullptr && detail::group_norm_resident_gradient(context, shape, x, weight, bias, mean, inverse_deviation, dy, dx,
                                                                  accumulate_x, wants_weights, write_weights))
          return;
      const auto l = detail::group_norm_grid(context, shape, width, sizeof(compute_t<T>));
      const auto& g = l.sizes;
      const index_t count = shape.n * g.groups;
      Scratch<Cuda> scratch(context);
      auto* group_sums = scratch.template allocate<double>(count * g.chunks * 2);
      auto* group_means = scratch.template allocate<compute_t<T>>(count * 2);
      auto* channel_sums = wants_weights ? scratch.template allocate<compute_t<T>>(shape.n * g.chunks * g.c * 2) : nullptr;
      context.launch("group_norm_gradient_sums_kernel", {l.grid, l.block, l.shared},
                     detail::group_norm_gradient_sums_kernel<width, T>, g, x, weight, bias, mean, inverse_deviation, dy, group_sums,
                     channel_sums);
      if (wants_weights) write_weights(shape.n * g.chunks, channel_sums);
      if (dx == nullptr) return;
      context.launch("group_norm_gradient_join_kernel", {detail::blocks_for(count, 4), 128},
                     detail::group_norm_gradient_join_kernel<compute_t<T>>, g, count, group_sums, group_means);
      context.launch("group_norm_dx_kernel", {l.grid, l.block}, detail::group_norm_dx_kernel<width, T>, g, x, weight, bias, mean,
                     inverse_deviation, group_means, dy, dx, accumulate_x);
    });
  }

 private:
  /// Calls `body(vector)` with 16 bytes of channels per thread where the addresses allow it.
  template <class T, class Body>
  static void by_vectors(const GroupNormShape& shape, int alignment, Body&& body) {
    constexpr int wide = static_cast<int>(16 / sizeof(T));
    if (shape.c % wide == 0 && alignment == 16)
      body(std::integral_constant<int, wide>{});
    else
      body(std::integral_constant<int, 1>{});
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
