// SPDX-License-Identifier: MIT
// Group norm of images whose groups fit on chip: a cluster of blocks holds them between statistics and result.
#pragma once

#include <numeric>

#include <lpo/backend/cuda/group_norm_pieces.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// Formula: as in group_norm.cuh.
// Launch: blockIdx = (chunk of pixels, tile of channels, image), and the chunks of a tile are a cluster. A block has a column of
//   threads per Vector channels, and rows of threads that share the chunk's pixels.
// Memory: a thread copies its own pieces of x (and dy) to shared memory, a few ahead of those that it adds, and reads them again
//   for the result: device memory is read once and written once. Blocks send each other two numbers per group.
// Numerics: sums in float of distances from the group's first number in the image, joined in double; the mean in two parts: a
//   large mean costs nothing. z = (x - mean) a + b with a = inverse_deviation weight.
// Limits: what resident_grid() asks; clusters of more than one block need sm_90.

template <int Vector, class T>
__global__ void __launch_bounds__(resident_threads<1>, 2)
    group_norm_resident_kernel(const __grid_constant__ GroupNormLaunch g, double epsilon, const T* x, const T* weight, const T* bias,
                               T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation) {
  using Number = compute_t<T>;
  const ResidentLayout<1, T> layout(g);
  open_inbox(layout.inbox, g.chunks, g.tile_groups_here());
  ResidentPieces<Vector, 1, T> pieces(g, layout, {x});
  const index_t channel = first_channel<Vector>(g);
  const T* image = x + blockIdx.z * g.spatial * g.c;
  StoredNumbers<T, Vector> weights{}, biases{};  // fetched before they are needed
  Number sum[Vector] = {}, squares[Vector] = {};
  if (channel < g.c) {
    Number origin[Vector];  // the same for all channels of a group
#pragma unroll
    for (int i = 0; i < Vector; ++i) origin[i] = widen(image[g.group_of(channel + i) * g.width]);
    weights.fetch(weight + channel);
    biases.fetch(bias + channel);
    pieces.walk_arriving([&](const Number(&value)[1][Vector]) {
#pragma unroll
      for (int i = 0; i < Vector; ++i) {
        const Number distance = value[0][i] - origin[i];
        sum[i] += distance;
        squares[i] += distance * distance;
      }
    });
  }
  send_group_sums(g, layout, sum, squares, [] {});
  const int first_group = static_cast<int>(blockIdx.y) * g.tile_groups;
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const Number origin = widen(image[min(first_group + thread / group_lanes, static_cast<int>(g.groups) - 1) * g.width]);
  wait_for_inbox(layout.inbox, g.chunks);
  for_groups_of_tile(g, [&](int group, int local, int lane) {
    double sums[2];
    join_group_sums(g, layout, local, lane, sums);
    if (lane != 0) return;
    const double distance = sums[0] * g.per_element;
    const double start = static_cast<double>(local == thread / group_lanes ? origin : widen(image[group * g.width]));
    const double center = start + distance, spread = ::fmax(sums[1] * g.per_element - distance * distance, 0.0);
    const Number inverse = 1 / ::sqrt(static_cast<Number>(spread + epsilon)), rounded = static_cast<Number>(center);
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
  const NormActivation<T> activation(g.silu);
  Number center[Vector], scale[Vector], shift[Vector];
  weights.widen_to(scale);
  biases.widen_to(shift);
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    const Number* of_group = layout.group_numbers + g.group_of(static_cast<int>(threadIdx.x) * Vector + i) * 3;
    center[i] = of_group[0];
    scale[i] *= of_group[2] * activation.factor;
    shift[i] = shift[i] * activation.factor - of_group[1] * scale[i];
  }
  pieces.walk([&](index_t offset, const Number(&value)[1][Vector]) {
    Number out[Vector];
#pragma unroll
    for (int i = 0; i < Vector; ++i) out[i] = activation.value((value[0][i] - center[i]) * scale[i] + shift[i]);
    store_numbers<Vector>(y + offset, out);
  });
}

/// channel_sums[image, chunk, channel] (may be null) = sums of dz and dz * hat, as in group_norm_gradient_sums_kernel.
template <int Vector, class T>
__global__ void __launch_bounds__(resident_threads<2>, 2)
    group_norm_resident_gradient_kernel(const __grid_constant__ GroupNormLaunch g, const T* x, const T* weight, const T* bias,
                                        const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                                        bool accumulate, compute_t<T>* channel_sums) {
  using Number = compute_t<T>;
  const ResidentLayout<2, T> layout(g);
  open_inbox(layout.inbox, g.chunks, g.tile_groups_here());
  ResidentPieces<Vector, 2, T> pieces(g, layout, {x, dy});
  const index_t channel = first_channel<Vector>(g), start = static_cast<index_t>(blockIdx.y) * static_cast<index_t>(g.tile);
  const index_t first_group = blockIdx.z * g.groups;
  const NormActivation<T> activation(g.silu);
  Number center[Vector] = {}, scale[Vector] = {}, shift[Vector] = {};
  if (channel < g.c) {
    load_numbers<Vector>(weight + channel, scale);
    load_numbers<Vector>(bias + channel, shift);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const index_t group = first_group + g.group_of(channel + i);
      center[i] = mean[group];
      scale[i] *= inverse_deviation[group] * activation.factor;
      shift[i] *= activation.factor;
    }
  }
  Number plain[Vector] = {}, along[Vector] = {};  // sums of dz and of dz (x - mean), over activation.factor
  pieces.walk_arriving([&](const Number(&value)[2][Vector]) {
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number distance = value[0][i] - center[i], dz = activation.gradient(value[1][i], distance * scale[i] + shift[i]);
      plain[i] += dz;
      along[i] += dz * distance;
    }
  });
  Number of_plain[Vector], of_along[Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) of_plain[i] = plain[i] * scale[i], of_along[i] = along[i] * scale[i];
  const int threads = static_cast<int>(blockDim.x * blockDim.y), rows = static_cast<int>(blockDim.y);
  send_group_sums(g, layout, of_plain, of_along, [&] {
    if (!g.channel_sums) return;
    const int at = static_cast<int>(threadIdx.y) * g.tile + static_cast<int>(threadIdx.x) * Vector;
    store_numbers<Vector>(layout.channel_sums + at, plain);
    store_numbers<Vector>(layout.channel_sums + rows * g.tile + at, along);
  });
  if (g.channel_sums) {  // while the sums are on their way
    const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
#pragma unroll 1
    for (int at = thread; at < min(static_cast<index_t>(g.tile), g.c - start); at += threads) {
      Number sums[2] = {};
#pragma unroll 4
      for (int row = 0; row < rows; ++row) {
        sums[0] += layout.channel_sums[row * g.tile + at];
        sums[1] += layout.channel_sums[(rows + row) * g.tile + at];
      }
      Number* to = channel_sums + ((blockIdx.z * g.chunks + blockIdx.x) * g.c + start + at) * 2;
      to[0] = sums[0] * activation.factor;
      to[1] = sums[1] * activation.factor * inverse_deviation[first_group + g.group_of(start + at)];
    }
  }
  wait_for_inbox(layout.inbox, g.chunks);
  for_groups_of_tile(g, [&](int group, int local, int lane) {
    double sums[2];
    join_group_sums(g, layout, local, lane, sums);
    if (lane != 0) return;
    layout.group_numbers[local * 3] = static_cast<Number>(sums[0] * g.per_element);
    const Number inverse = inverse_deviation[first_group + group];
    layout.group_numbers[local * 3 + 1] = static_cast<Number>(sums[1] * g.per_element) * inverse * inverse;
  });
  __syncthreads();
  if (channel >= g.c) return;
  // dx = inverse (dz weight - mean of dz weight - hat * mean of dz weight hat)
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
      const Number distance = value[0][i] - center[i], dz = activation.gradient(value[1][i], distance * scale[i] + shift[i]);
      out[i] = dz * scale[i] - (of_plain[i] + distance * of_along[i]) + old[i];
    }
    store_numbers<Vector>(dx + offset, out);
  });
}

/// A launch whose clusters of at most `most` blocks hold Inputs tensors of T, tile by tile; `chunks` is 0 where that does not fit.
template <int Inputs, class T>
GroupNormGrid resident_grid(Context<Cuda>& context, const kernel::GroupNormShape& s, index_t most, bool channel_sums) {
  constexpr index_t vector = 16 / static_cast<index_t>(sizeof(T));
  GroupNormGrid launch;
  auto& g = launch.sizes = GroupNormLaunch(s);
  g.channel_sums = channel_sums;
  if (g.width < vector || s.n > 65535) return launch;  // a vector has channels of two groups at most
  // Whole groups and whole vectors, and whole sectors of 32 bytes, two or more.
  const index_t unit = std::lcm(vector, static_cast<index_t>(g.width)), sectors = std::lcm(unit, 2 * vector);
  const index_t all = context.shared_memory();
  // Small blocks, many to a multiprocessor, whose copies run beside the arithmetic of others; larger ones where clusters of those
  // do not hold a tile.
  struct Size {
    index_t threads, share;  ///< share: blocks to a multiprocessor
  };
  const Size sizes[] = {{160, Inputs == 1 ? 5 : 4}, {320, 2}, {resident_threads<Inputs>, 1}};
  for (const index_t channels : {std::max(sectors, 4 * vector / sectors * sectors), unit})
    for (const Size& size : sizes) {
      g.set_tile(std::min(g.c, channels));
      const index_t columns = g.tile / vector, rows = size.threads / columns, tiles = (g.c + g.tile - 1) / g.tile;
      if (rows == 0) continue;
      const auto bytes_with = [&](index_t chunks) {
        g.set_chunks(chunks);
        return resident_bytes<T>(g, Inputs, rows * columns);
      };
      index_t chunks = 1;
      while (chunks < most && bytes_with(chunks) > (all + 1024) / size.share - 1024) chunks *= 2;
      if (bytes_with(chunks) > (all + 1024) / size.share - 1024) continue;
      while (chunks < most && s.n * tiles * chunks < 4 * context.multiprocessors() && s.spatial >= 8 * rows * chunks) chunks *= 2;
      launch.shared = static_cast<std::size_t>(bytes_with(chunks));  // g.chunks is smaller where some would have no pixel
      launch.grid = dim3(static_cast<unsigned>(g.chunks), static_cast<unsigned>(tiles), static_cast<unsigned>(s.n));
      launch.block = dim3(static_cast<unsigned>(columns), static_cast<unsigned>(rows));
      return launch;
    }
  g.chunks = 0;
  return launch;
}

/// Whether it was launched.
template <class T>
bool group_norm_resident(Context<Cuda>& context, const kernel::GroupNormShape& shape, const T* x, const T* weight, const T* bias, T* y,
                         compute_t<T>* mean, compute_t<T>* inverse_deviation) {
  constexpr auto kernel = group_norm_resident_kernel<16 / static_cast<int>(sizeof(T)), T>;
  const auto l = resident_grid<1, T>(context, shape, most_cluster_blocks<kernel>(), false);
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
  constexpr auto kernel = group_norm_resident_gradient_kernel<16 / static_cast<int>(sizeof(T)), T>;
  const auto l = resident_grid<2, T>(context, shape, most_cluster_blocks<kernel>(), wants_weights);
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
