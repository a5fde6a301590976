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
// Memory: a thread copies its own pieces of x (and dy) to shared memory, a few ahead of those that it adds, and reads them again
//   for the result: device memory is read once and written once. Blocks send each other two numbers per group.
// Numerics: sums in float of distances from the group's first number in the image, joined in double; the mean in two parts: a
//   large mean costs nothing. z = (x - mean) a + b with a = inverse_deviation weight.
// Limits: what resident_grid() asks; clusters of more than one block need sm_90.

/// The most threads of a block, for whose registers there is room in two blocks.
template <int Inputs>
inline constexpr int resident_threads = Inputs == 1 ? 480 : 320;

/// Sums of a thread's channels by group: a vector has channels of two groups at most.
template <class Number>
struct alignas(16) GroupSums {
  Number at[2][2];  ///< [group, which sum]
};

/// This block's shared memory, in this order, each part aligned to 16 bytes.
template <int Inputs, class T>
struct ResidentLayout {
  T* staged[Inputs];               ///< [pixel of the chunk, tile]
  double* exchanged;               ///< [block of the cluster, group of the tile, 2]
  std::uint64_t* inbox;            ///< of exchanged
  GroupSums<compute_t<T>>* sums;   ///< [row of threads, column]
  compute_t<T>* group_numbers;     ///< [group of the tile, 3]
  compute_t<T>* channel_sums;      ///< [2, row of threads, tile], where they are wanted

  __device__ __forceinline__ explicit ResidentLayout(const GroupNormLaunch& g) {
    unsigned char* at = launched_shared_memory();
    for (int k = 0; k < Inputs; ++k, at += g.chunk * g.tile * static_cast<index_t>(sizeof(T))) staged[k] = reinterpret_cast<T*>(at);
    exchanged = reinterpret_cast<double*>(at);
    at += g.chunks * g.tile_groups * 16;
    inbox = reinterpret_cast<std::uint64_t*>(at);
    at += 16;
    sums = reinterpret_cast<GroupSums<compute_t<T>>*>(at);
    const int threads = static_cast<int>(blockDim.x * blockDim.y);
    channel_sums = reinterpret_cast<compute_t<T>*>(sums + threads);
    group_numbers = channel_sums + (g.channel_sums ? threads * (32 / static_cast<int>(sizeof(T))) : 0);
  }
};
template <class T>
index_t resident_bytes(const GroupNormLaunch& g, int inputs, index_t threads) {
  const index_t number = sizeof(compute_t<T>), row_sums = 4 + (g.channel_sums ? 32 / static_cast<index_t>(sizeof(T)) : 0);
  return inputs * g.chunk * g.tile * static_cast<index_t>(sizeof(T)) + g.chunks * g.tile_groups * 16 + 16 +
         (threads * row_sums + g.tile_groups * 3) * number;
}

/// This thread's pieces of the chunk: 16 bytes of a pixel, in every blockDim.y-th one.
template <int Vector, int Inputs, class T>
class ResidentPieces {
 public:
  using Number = compute_t<T>;

  __device__ __forceinline__ ResidentPieces(const GroupNormLaunch& g, const ResidentLayout<Inputs, T>& layout,
                                            const T* const (&inputs)[Inputs]) {
    const int pixels = static_cast<int>(g.pixels_of(blockIdx.x)), row = static_cast<int>(threadIdx.y);
    const int step = static_cast<int>(blockDim.y);
    const bool inside = first_channel<Vector>(g) < g.c;
    count_ = inside && row < pixels ? (pixels - row + step - 1) / step : 0;
    offset_ = (blockIdx.z * g.spatial + blockIdx.x * g.chunk + row) * g.c + first_channel<Vector>(g);
    step_ = static_cast<int>(step * g.c);
    staged_step_ = step * g.tile;
#pragma unroll
    for (int k = 0; k < Inputs; ++k) {
      staged_[k] = layout.staged[k] + row * g.tile + static_cast<int>(threadIdx.x) * Vector;
      inputs_[k] = inputs[k] + offset_;
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) fetch(i);
  }

  /// Calls `body(values)` for the pieces as they arrive.
  template <class Body>
  __device__ __forceinline__ void walk_arriving(Body&& body) {
#pragma unroll 1
    for (int i = 0; i < count_; ++i) {
      wait_for_groups<ahead - 1>();
      Number values[Inputs][Vector];
      load(i, values);
      body(values);
      fetch(i + ahead);
    }
  }

  /// Calls `body(global offset, values)` for the pieces.
  template <class Body>
  __device__ __forceinline__ void walk(Body&& body) const {
#pragma unroll 2
    for (int i = 0; i < count_; ++i) {
      Number values[Inputs][Vector];
      load(i, values);
      body(offset_ + static_cast<index_t>(i) * step_, values);
    }
  }

 private:
  static constexpr int ahead = 8 / Inputs;  ///< pieces on their way at a time

  /// Starts the copies of piece i, as a group that may be empty.
  __device__ __forceinline__ void fetch(int i) {
    if (i < count_) {
#pragma unroll
      for (int k = 0; k < Inputs; ++k) copy_16_async(staged_[k] + i * staged_step_, inputs_[k]);
    }
#pragma unroll
    for (int k = 0; k < Inputs; ++k) inputs_[k] += step_;
    close_copy_group();
  }
  __device__ __forceinline__ void load(int i, Number (&values)[Inputs][Vector]) const {
#pragma unroll
    for (int k = 0; k < Inputs; ++k) {
      StoredNumbers<T, Vector> piece;
      piece.fetch(staged_[k] + i * staged_step_);
      piece.widen_to(values[k]);
    }
  }

  T* staged_[Inputs];
  const T* inputs_[Inputs];  ///< at the next piece to fetch
  int count_, step_, staged_step_;
  index_t offset_;
};

/// Adds each thread's sums of its channels over the block by group, calls `also()` before the barrier between, and sends each
/// group's two sums to all blocks of the cluster.
template <int Vector, int Inputs, class T, class Also>
__device__ __forceinline__ void send_group_sums(const GroupNormLaunch& g, const ResidentLayout<Inputs, T>& layout,
                                                const compute_t<T> (&first)[Vector], const compute_t<T> (&second)[Vector],
                                                Also&& also) {
  using Number = compute_t<T>;
  const int columns = static_cast<int>(blockDim.x), rows = static_cast<int>(blockDim.y);
  const int in_tile = static_cast<int>(threadIdx.x) * Vector, thread = static_cast<int>(threadIdx.y) * columns + static_cast<int>(threadIdx.x);
  const int border = (g.group_of(in_tile) + 1) * g.width - in_tile;
  GroupSums<Number> own{};
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    own.at[0][0] += i < border ? first[i] : Number{};
    own.at[0][1] += i < border ? second[i] : Number{};
    own.at[1][0] += i < border ? Number{} : first[i];
    own.at[1][1] += i < border ? Number{} : second[i];
  }
  layout.sums[thread] = own;
  also();
  __syncthreads();
  if (g.chunks > 1) cluster_wait();  // the other blocks have begun
  for_groups_of_tile(g, [&](int, int local, int lane) {
    const int from = local * g.width / Vector, to = (local * g.width + g.width - 1) / Vector;
    Number sums[2] = {};
    for (int row = lane; row < rows; row += group_lanes)
#pragma unroll 2
      for (int column = from; column <= to; ++column) {
        const int part = g.group_of(column * Vector) == local ? 0 : 1;
        const Number(&of)[2] = layout.sums[row * columns + column].at[part];
        sums[0] += of[0];
        sums[1] += of[1];
      }
    const Number a = sum_of_lanes(sums[0]), b = sum_of_lanes(sums[1]);
    double* place = layout.exchanged + (static_cast<int>(blockIdx.x) * g.tile_groups + local) * 2;
    if (lane < g.chunks) send_pair(place, layout.inbox, g.chunks, lane, static_cast<double>(a), static_cast<double>(b));
  });
}

/// The sums that all blocks of the cluster sent for a group (number `local` of the tile), by its lanes.
template <int Inputs, class T>
__device__ __forceinline__ void join_group_sums(const GroupNormLaunch& g, const ResidentLayout<Inputs, T>& layout, int local, int lane,
                                                double (&sums)[2]) {
  const double* sent = layout.exchanged + (lane * g.tile_groups + local) * 2;
  const bool there = lane < g.chunks;
  sums[0] = sum_of_lanes(there ? sent[0] : 0.0);
  sums[1] = sum_of_lanes(there ? sent[1] : 0.0);
}

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
