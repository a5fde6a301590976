// SPDX-License-Identifier: MIT
// Group norm of CUDA devices, channels last, with SiLU in the same pass; forward and backward without atomics.
#pragma once

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/normalization.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

// Formula: hat = (x - mean) * inverse_deviation, z = hat * weight + bias, y = z or silu(z); statistics over (spatial, c / groups).
// Launch: a block is 32 columns of Vector channels x 8 rows of pixels; blockIdx = (chunk of pixels, image, tile of columns). The
//   first kernel leaves each channel's statistics per chunk, a small second one joins them by group, the third writes.
// Memory: x is read twice forward (the second time often from L2), x and dy twice backward.
// Numerics: chunk statistics in float about the chunk's first pixel, joined in double, and the mean in two parts: a large mean
//   costs nothing.
// Limits: n and the number of column tiles below 65536.

inline constexpr int norm_block_columns = 32, norm_block_rows = 8;

/// Sizes that all kernels of one group norm share.
struct GroupNormLaunch {
  index_t spatial = 0, c = 0, groups = 0, chunk = 0, chunks = 0;
  bool silu = false;
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

/// Calls `body(offset)` for the pixels of this thread's chunk; `offset` is that of Vector channels of image blockIdx.y.
template <int Vector, class Body>
__device__ __forceinline__ void for_pixels_of_chunk(const GroupNormLaunch& g, index_t channel, Body&& body) {
  const index_t first = blockIdx.x * g.chunk, last = min(g.spatial, first + g.chunk);
  for (index_t pixel = first + threadIdx.y; pixel < last; pixel += norm_block_rows) body((blockIdx.y * g.spatial + pixel) * g.c + channel);
}

/// Adds `a` and `b` over the block's rows and stores the pair of every channel at pairs[image, chunk, channel].
template <int Vector, class Number, class Store>
__device__ __forceinline__ void join_rows(const Number (&a)[Vector], const Number (&b)[Vector], Store&& store) {
  __shared__ Number shared[2][norm_block_rows][norm_block_columns * Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    shared[0][threadIdx.y][threadIdx.x * Vector + i] = a[i];
    shared[1][threadIdx.y][threadIdx.x * Vector + i] = b[i];
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.y) * norm_block_columns + static_cast<int>(threadIdx.x); at < norm_block_columns * Vector;
       at += norm_block_columns * norm_block_rows) {
    Number first{}, second{};
#pragma unroll
    for (int row = 0; row < norm_block_rows; ++row) {
      first += shared[0][row][at];
      second += shared[1][row][at];
    }
    store(static_cast<index_t>(blockIdx.z) * norm_block_columns * Vector + at, first, second);
  }
}

/// chunk_statistics[image, chunk, channel] = (mean, sum of squared distances from it) over the chunk's pixels.
template <int Vector, class T>
__global__ void __launch_bounds__(256)
    group_norm_statistics_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, double* chunk_statistics) {
  using Number = compute_t<T>;
  const index_t channel = (static_cast<index_t>(blockIdx.z) * norm_block_columns + threadIdx.x) * Vector;
  const index_t first = blockIdx.x * g.chunk, pixels = min(g.spatial, first + g.chunk) - first;
  const index_t start = (blockIdx.y * g.spatial + first) * g.c;
  Number sum[Vector] = {}, squares[Vector] = {};
  if (channel < g.c) {
    Number origin[Vector];
    load_numbers<Vector>(x + start + channel, origin);
    for_pixels_of_chunk<Vector>(g, channel, [&](index_t offset) {
      Number value[Vector];
      load_numbers<Vector>(x + offset, value);
#pragma unroll
      for (int i = 0; i < Vector; ++i) {
        const Number distance = value[i] - origin[i];
        sum[i] += distance;
        squares[i] += distance * distance;
      }
    });
  }
  join_rows(sum, squares, [&](index_t at, Number total, Number square) {
    if (at >= g.c) return;
    double* to = chunk_statistics + ((blockIdx.y * g.chunks + blockIdx.x) * g.c + at) * 2;
    const double mean = static_cast<double>(total) / static_cast<double>(pixels);
    to[0] = static_cast<double>(widen(x[start + at])) + mean;
    to[1] = static_cast<double>(square) - static_cast<double>(total) * mean;
  });
}

/// Block (group, image): joins the chunks' statistics of the group's channels (Chan, Golub and LeVeque 1979). `mean_rest` is
/// what `mean` lost to rounding.
template <class Number>
__global__ void __launch_bounds__(128)
    group_norm_join_kernel(const __grid_constant__ GroupNormLaunch g, double epsilon, const double* chunk_statistics, Number* mean,
                           Number* mean_rest, Number* inverse_deviation) {
  __shared__ double shared[4];
  const index_t width = g.c / g.groups, items = g.chunks * width;
  const auto pair = [&](index_t item) {
    return chunk_statistics + ((blockIdx.y * g.chunks + item / width) * g.c + blockIdx.x * width + item % width) * 2;
  };
  const auto pixels = [&](index_t item) {
    const index_t first = item / width * g.chunk;
    return static_cast<double>(min(g.spatial, first + g.chunk) - first);
  };
  double sum = 0;
  for (index_t item = threadIdx.x; item < items; item += 128) sum += pair(item)[0] * pixels(item);
  const double count = static_cast<double>(g.spatial) * static_cast<double>(width);
  const double center = block_sum<128>(sum, shared) / count;
  double squares = 0;
  for (index_t item = threadIdx.x; item < items; item += 128) {
    const double distance = pair(item)[0] - center;
    squares += pair(item)[1] + pixels(item) * distance * distance;
  }
  squares = block_sum<128>(squares, shared);
  if (threadIdx.x != 0) return;
  mean[blockIdx.y * g.groups + blockIdx.x] = static_cast<Number>(center);
  mean_rest[blockIdx.y * g.groups + blockIdx.x] = static_cast<Number>(center - static_cast<double>(static_cast<Number>(center)));
  inverse_deviation[blockIdx.y * g.groups + blockIdx.x] = static_cast<Number>(1 / ::sqrt(fmax(squares, 0.0) / count + epsilon));
}

/// What a thread knows of its Vector channels.
template <int Vector, class T>
struct NormChannels {
  using Number = compute_t<T>;
  Number mean[Vector], rest[Vector], inverse[Vector], weight[Vector], bias[Vector];

  __device__ __forceinline__ NormChannels(const GroupNormLaunch& g, index_t channel, const T* weights, const T* biases,
                                          const Number* means, const Number* rests, const Number* inverses) {
    const index_t width = g.c / g.groups;
    load_numbers<Vector>(weights + channel, weight);
    load_numbers<Vector>(biases + channel, bias);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const index_t group = blockIdx.y * g.groups + (channel + i) / width;
      mean[i] = means[group];
      rest[i] = rests == nullptr ? Number{} : rests[group];
      inverse[i] = inverses[group];
    }
  }
  __device__ __forceinline__ Number hat(int i, Number x) const { return ((x - mean[i]) - rest[i]) * inverse[i]; }
  __device__ __forceinline__ Number z(int i, Number hat) const { return hat * weight[i] + bias[i]; }
};

template <int Vector, class T>
__global__ void __launch_bounds__(256)
    group_norm_write_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, const T* weight, const T* bias,
                            const compute_t<T>* mean, const compute_t<T>* mean_rest, const compute_t<T>* inverse_deviation, T* y) {
  using Number = compute_t<T>;
  const index_t channel = (static_cast<index_t>(blockIdx.z) * norm_block_columns + threadIdx.x) * Vector;
  if (channel >= g.c) return;
  const NormChannels<Vector, T> channels(g, channel, weight, bias, mean, mean_rest, inverse_deviation);
  for_pixels_of_chunk<Vector>(g, channel, [&](index_t offset) {
    Number value[Vector];
    load_numbers<Vector>(x + offset, value);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number z = channels.z(i, channels.hat(i, value[i]));
      value[i] = g.silu ? z * sigmoid_number(z) : z;
    }
    store_numbers<Vector>(y + offset, value);
  });
}

/// chunk_sums[image, chunk, channel] = (sum of dz, sum of dz * hat), dz being the gradient of z.
template <int Vector, class T>
__global__ void __launch_bounds__(256)
    group_norm_gradient_sums_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, const T* weight, const T* bias,
                                    const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy,
                                    compute_t<T>* chunk_sums) {
  using Number = compute_t<T>;
  const index_t channel = (static_cast<index_t>(blockIdx.z) * norm_block_columns + threadIdx.x) * Vector;
  Number plain[Vector] = {}, along[Vector] = {};
  if (channel < g.c) {
    const NormChannels<Vector, T> channels(g, channel, weight, bias, mean, nullptr, inverse_deviation);
    for_pixels_of_chunk<Vector>(g, channel, [&](index_t offset) {
      Number value[Vector], gradient[Vector];
      load_numbers<Vector>(x + offset, value);
      load_numbers<Vector>(dy + offset, gradient);
#pragma unroll
      for (int i = 0; i < Vector; ++i) {
        const Number hat = channels.hat(i, value[i]);
        const Number dz = g.silu ? gradient[i] * silu_slope(channels.z(i, hat)) : gradient[i];
        plain[i] += dz;
        along[i] += dz * hat;
      }
    });
  }
  join_rows(plain, along, [&](index_t at, Number total, Number total_along) {
    if (at >= g.c) return;
    Number* to = chunk_sums + ((blockIdx.y * g.chunks + blockIdx.x) * g.c + at) * 2;
    to[0] = total;
    to[1] = total_along;
  });
}

/// Block (group, image): channel_sums[image, channel] over the chunks, in order; group_means[image, group] = means over the
/// group's elements of weight * dz and weight * dz * hat.
template <class T>
__global__ void __launch_bounds__(128)
    group_norm_gradient_join_kernel(const __grid_constant__ GroupNormLaunch g, const T* weight, const compute_t<T>* chunk_sums,
                                    double* channel_sums, compute_t<T>* group_means) {
  __shared__ double shared[4];
  const index_t width = g.c / g.groups;
  double plain = 0, along = 0;
  for (index_t i = threadIdx.x; i < width; i += 128) {
    const index_t channel = blockIdx.x * width + i;
    double sums[2] = {};
    for (index_t chunk = 0; chunk < g.chunks; ++chunk)
      for (int which = 0; which < 2; ++which)
        sums[which] += static_cast<double>(chunk_sums[((blockIdx.y * g.chunks + chunk) * g.c + channel) * 2 + which]);
    double* to = channel_sums + (blockIdx.y * g.c + channel) * 2;
    to[0] = sums[0];
    to[1] = sums[1];
    plain += sums[0] * static_cast<double>(widen(weight[channel]));
    along += sums[1] * static_cast<double>(widen(weight[channel]));
  }
  plain = block_sum<128>(plain, shared);
  along = block_sum<128>(along, shared);
  if (threadIdx.x != 0) return;
  const double count = static_cast<double>(g.spatial) * static_cast<double>(width);
  compute_t<T>* to = group_means + (blockIdx.y * g.groups + blockIdx.x) * 2;
  to[0] = static_cast<compute_t<T>>(plain / count);
  to[1] = static_cast<compute_t<T>>(along / count);
}

/// dbias and dweight (+)= the two sums of every channel over the `rows` of sums[rows, c, 2], in order.
template <class T, class Number>
__global__ void __launch_bounds__(256)
    norm_weights_kernel(index_t rows, index_t c, const Number* sums, T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias) {
  const index_t channel = static_cast<index_t>(blockIdx.x) * 256 + threadIdx.x;
  if (channel >= c) return;
  const auto write = [&](T* to, bool accumulate, int which) {
    if (to == nullptr) return;
    double total = accumulate ? static_cast<double>(widen(to[channel])) : 0.0;
    for (index_t row = 0; row < rows; ++row) total += static_cast<double>(sums[(row * c + channel) * 2 + which]);
    to[channel] = narrow<T>(static_cast<compute_t<T>>(total));
  };
  write(dbias, accumulate_bias, 0);
  write(dweight, accumulate_weight, 1);
}

template <int Vector, class T>
__global__ void __launch_bounds__(256)
    group_norm_dx_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, const T* weight, const T* bias,
                         const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const compute_t<T>* group_means, const T* dy,
                         T* dx, bool accumulate) {
  using Number = compute_t<T>;
  const index_t channel = (static_cast<index_t>(blockIdx.z) * norm_block_columns + threadIdx.x) * Vector;
  if (channel >= g.c) return;
  const NormChannels<Vector, T> channels(g, channel, weight, bias, mean, nullptr, inverse_deviation);
  Number plain[Vector], along[Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    const Number* means = group_means + (blockIdx.y * g.groups + (channel + i) / (g.c / g.groups)) * 2;
    plain[i] = means[0];
    along[i] = means[1];
  }
  for_pixels_of_chunk<Vector>(g, channel, [&](index_t offset) {
    Number value[Vector], gradient[Vector];
    load_numbers<Vector>(x + offset, value);
    load_numbers<Vector>(dy + offset, gradient);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number hat = channels.hat(i, value[i]);
      const Number dz = g.silu ? gradient[i] * silu_slope(channels.z(i, hat)) : gradient[i];
      gradient[i] = channels.inverse[i] * (dz * channels.weight[i] - plain[i] - hat * along[i]);
    }
    if (accumulate) {
      load_numbers<Vector>(dx + offset, value);
#pragma unroll
      for (int i = 0; i < Vector; ++i) gradient[i] += value[i];
    }
    store_numbers<Vector>(dx + offset, gradient);
  });
}

/// Chunks long enough to amortise a thread's loads of its channels, and many enough to fill the device.
inline GroupNormLaunch group_norm_launch(Context<Cuda>& context, const kernel::GroupNormShape& s, index_t tiles) {
  GroupNormLaunch g{s.spatial, s.c, s.groups, 0, 0, s.silu};
  const index_t wanted = std::max<index_t>(1, 8 * context.multiprocessors() / std::max<index_t>(1, s.n * tiles));
  g.chunk = std::max<index_t>(2 * norm_block_rows, (s.spatial + wanted - 1) / wanted);
  g.chunks = (s.spatial + g.chunk - 1) / g.chunk;
  return g;
}

}  // namespace detail

namespace kernel {

template <>
struct GroupNorm<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, const GroupNormShape& shape, const T* x, const T* weight, const T* bias, T* y,
                      compute_t<T>* mean, compute_t<T>* inverse_deviation) {
    if (shape.n * shape.spatial * shape.c <= 0) return;
    by_vectors<T>(context, shape, detail::common_alignment(x, weight, bias, y), [&](auto vector, const detail::GroupNormLaunch& g, dim3 grid, dim3 block) {
      constexpr int width = decltype(vector)::value;
      Scratch<Cuda> scratch(context);
      auto* statistics = scratch.template allocate<double>(shape.n * g.chunks * g.c * 2);
      auto* mean_rest = scratch.template allocate<compute_t<T>>(shape.n * g.groups);
      detail::group_norm_statistics_kernel<width><<<grid, block, 0, context.stream()>>>(g, x, statistics);
      context.check_launch("group_norm_statistics_kernel");
      const dim3 by_group(static_cast<unsigned>(g.groups), static_cast<unsigned>(shape.n));
      detail::group_norm_join_kernel<<<by_group, 128, 0, context.stream()>>>(g, static_cast<double>(shape.epsilon), statistics, mean,
                                                                            mean_rest, inverse_deviation);
      context.check_launch("group_norm_join_kernel");
      detail::group_norm_write_kernel<width><<<grid, block, 0, context.stream()>>>(g, x, weight, bias, mean, mean_rest,
                                                                                   inverse_deviation, y);
      context.check_launch("group_norm_write_kernel");
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
    by_vectors<T>(context, shape, detail::common_alignment(x, weight, bias, dy, dx), [&](auto vector, const detail::GroupNormLaunch& g, dim3 grid, dim3 block) {
      constexpr int width = decltype(vector)::value;
      Scratch<Cuda> scratch(context);
      auto* chunk_sums = scratch.template allocate<compute_t<T>>(shape.n * g.chunks * g.c * 2);
      auto* channel_sums = scratch.template allocate<double>(shape.n * g.c * 2);
      auto* group_means = scratch.template allocate<compute_t<T>>(shape.n * g.groups * 2);
      detail::group_norm_gradient_sums_kernel<width>
          <<<grid, block, 0, context.stream()>>>(g, x, weight, bias, mean, inverse_deviation, dy, chunk_sums);
      context.check_launch("group_norm_gradient_sums_kernel");
      const dim3 by_group(static_cast<unsigned>(g.groups), static_cast<unsigned>(shape.n));
      detail::group_norm_gradient_join_kernel<<<by_group, 128, 0, context.stream()>>>(g, weight, chunk_sums, channel_sums, group_means);
      context.check_launch("group_norm_gradient_join_kernel");
      if (dweight != nullptr || dbias != nullptr) {
        detail::norm_weights_kernel<<<detail::blocks_for(g.c, 256), 256, 0, context.stream()>>>(
            shape.n, g.c, channel_sums, dweight, accumulate_weight, dbias, accumulate_bias);
        context.check_launch("norm_weights_kernel");
      }
      if (dx == nullptr) return;
      detail::group_norm_dx_kernel<width>
          <<<grid, block, 0, context.stream()>>>(g, x, weight, bias, mean, inverse_deviation, group_means, dy, dx, accumulate_x);
      context.check_launch("group_norm_dx_kernel");
    });
  }

 private:
  /// Calls `launch(vector, sizes, grid, block)` with 16 bytes of channels per thread where the addresses allow it.
  template <class T, class Launch>
  static void by_vectors(Context<Cuda>& context, const GroupNormShape& shape, int alignment,
                         Launch&& launch) {
    constexpr int wide = static_cast<int>(16 / sizeof(T));
    const bool vectors = shape.c % wide == 0 && alignment == 16;
    const index_t tiles = (shape.c + detail::norm_block_columns * (vectors ? wide : 1) - 1) / (detail::norm_block_columns * (vectors ? wide : 1));
    const auto g = detail::group_norm_launch(context, shape, tiles);
    const dim3 grid(static_cast<unsigned>(g.chunks), static_cast<unsigned>(shape.n), static_cast<unsigned>(tiles));
    const dim3 block(detail::norm_block_columns, detail::norm_block_rows);
    if (vectors)
      launch(std::integral_constant<int, wide>{}, g, grid, block);
    else
      launch(std::integral_constant<int, 1>{}, g, grid, block);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
