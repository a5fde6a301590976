// SPDX-License-Identifier: MIT
// Gradients of layer norm on CUDA devices: all of them in one walk for rows that fit a warp's registers, else in two.
#pragma once

#include <lpo/backend/cuda/group_norm.cuh>
#include <lpo/backend/cuda/rows.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// Formula: hat = (x - mean) inverse, dx = inverse (dy weight - mean of dy weight - hat * mean of dy weight hat); dbias and dweight
//   are the sums of dy and dy hat over the rows.
// Launch: a warp per row. In one walk, the device is filled once and a warp takes every so many-th row, of which it asks for the
//   next while it works on one; its lanes keep the two sums of their columns, warps of a block add theirs in order, and
//   norm_weights_kernel adds the blocks.
// Memory: one walk reads x and dy once. Two walks read them twice.
// Numerics: sums of a block in compute_t, of all blocks in double.

/// Vectors of a row that a lane holds in one walk.
inline constexpr int gradient_vectors = 5;
/// Blocks for whose registers a multiprocessor has room: a lane has two sums of its columns, and x and dy of two rows.
template <class T>
constexpr int gradient_blocks(int vector) {
  const int words = gradient_vectors * vector * static_cast<int>(2 * sizeof(compute_t<T>) + 4 * sizeof(T)) / 4 + 40;
  return std::max(1, 65536 / (32 * row_warps * words));
}

/// sums[block, channel] = (sum of dy, sum of dy * hat) over the block's rows; `shared` of the launch holds 2 c numbers.
template <int Vector, class T>
__global__ void __launch_bounds__(32 * row_warps, gradient_blocks<T>(Vector))
    layer_norm_gradient_kernel(index_t rows, index_t c, const T* x, const T* weight, const compute_t<T>* mean,
                               const compute_t<T>* inverse_deviation, const T* dy, T* dx, bool accumulate, compute_t<T>* sums) {
  using Number = compute_t<T>;
  constexpr int held = gradient_vectors;
  using Row = LaneRow<Vector, held, T>;
  const index_t step = static_cast<index_t>(gridDim.x) * row_warps;
  const Number per_column = 1 / static_cast<Number>(c);
  Number plain_of[held][Vector] = {}, along_of[held][Vector] = {};
  index_t row = row_of_warp();
  Row next_x, next_dy;
  Number next_center{}, next_inverse{};
  const auto fetch = [&](index_t at) {
    if (at >= rows) return;
    next_x.fetch(x + at * c, c);
    next_dy.fetch(dy + at * c, c);
    next_center = mean[at];
    next_inverse = inverse_deviation[at];
  };
  fetch(row);
  for (; row < rows; row += step) {
    const Row own_x = next_x, own_dy = next_dy;
    const Number center = next_center, inverse = next_inverse;
    fetch(row + step);
    Number plain{}, along{};
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (Row::column(i) >= c) continue;
      Number hat[Vector], gradient[Vector], w[Vector];
      own_x.numbers(i, hat);
      own_dy.numbers(i, gradient);
      load_numbers<Vector>(weight + Row::column(i), w);
#pragma unroll
      for (int k = 0; k < Vector; ++k) {
        hat[k] = (hat[k] - center) * inverse;
        plain_of[i][k] += gradient[k];
        along_of[i][k] += gradient[k] * hat[k];
        const Number dhat = gradient[k] * w[k];
        plain += dhat;
        along += dhat * hat[k];
      }
    }
    plain = warp_sum(plain) * per_column;
    along = warp_sum(along) * per_column;
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (Row::column(i) >= c) continue;
      T* to = dx + row * c + Row::column(i);
      Number hat[Vector], gradient[Vector], w[Vector], old[Vector] = {};
      own_x.numbers(i, hat);
      own_dy.numbers(i, gradient);
      load_numbers<Vector>(weight + Row::column(i), w);
      if (accumulate) load_numbers<Vector>(to, old);
#pragma unroll
      for (int k = 0; k < Vector; ++k)
        gradient[k] = inverse * (gradient[k] * w[k] - plain - (hat[k] - center) * inverse * along) + old[k];
      store_numbers<Vector>(to, gradient);
    }
  }
  Number* shared = launched_numbers<Number>();  // [channel, 2]
#pragma unroll 1
  for (int warp = 0; warp < row_warps; ++warp) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) / 32 != warp) continue;
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (Row::column(i) >= c) continue;
#pragma unroll
      for (int k = 0; k < Vector; ++k) {
        Number* to = shared + (Row::column(i) + k) * 2;
        to[0] = plain_of[i][k] + (warp == 0 ? Number{} : to[0]);
        to[1] = along_of[i][k] + (warp == 0 ? Number{} : to[1]);
      }
    }
  }
  __syncthreads();
  for (index_t at = threadIdx.x; at < 2 * c; at += 32 * row_warps) sums[blockIdx.x * 2 * c + at] = shared[at];
}

template <int Vector, class T>
__global__ void __launch_bounds__(32 * row_warps)
    layer_norm_dx_kernel(index_t rows, index_t c, const T* x, const T* weight, const compute_t<T>* mean,
                         const compute_t<T>* inverse_deviation, const T* dy, T* dx, bool accumulate) {
  using Number = compute_t<T>;
  const index_t row = row_of_warp();
  if (row >= rows) return;
  const Number center = mean[row], inverse = inverse_deviation[row];
  const auto gradients = [&](index_t column, Number (&hat)[Vector], Number (&dhat)[Vector]) {
    Number w[Vector];
    load_numbers<Vector>(x + row * c + column, hat);
    load_numbers<Vector>(dy + row * c + column, dhat);
    load_numbers<Vector>(weight + column, w);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      hat[i] = (hat[i] - center) * inverse;
      dhat[i] *= w[i];
    }
  };
  Number plain{}, along{};
  for_lane_columns<Vector>(c, [&](index_t column) {
    Number hat[Vector], dhat[Vector];
    gradients(column, hat, dhat);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      plain += dhat[i];
      along += dhat[i] * hat[i];
    }
  });
  plain = warp_sum(plain) / static_cast<Number>(c);
  along = warp_sum(along) / static_cast<Number>(c);
  for_lane_columns<Vector>(c, [&](index_t column) {
    Number hat[Vector], dhat[Vector];
    gradients(column, hat, dhat);
    T* to = dx + row * c + column;
    Number old[Vector] = {};
    if (accumulate) load_numbers<Vector>(to, old);
#pragma unroll
    for (int i = 0; i < Vector; ++i) dhat[i] = inverse * (dhat[i] - plain - hat[i] * along) + old[i];
    store_numbers<Vector>(to, dhat);
  });
}

inline constexpr int layer_norm_columns = 32, layer_norm_rows = 8;

/// sums[chunk, channel] = (sum of dy, sum of dy * hat) over the rows of chunk blockIdx.x; a block is 32 columns of Vector channels
/// (tile blockIdx.z) x 8 rows of threads.
template <int Vector, class T>
__global__ void __launch_bounds__(layer_norm_columns* layer_norm_rows)
    layer_norm_gradient_sums_kernel(index_t rows, index_t c, index_t chunk, const T* x, const compute_t<T>* mean,
                                    const compute_t<T>* inverse_deviation, const T* dy, compute_t<T>* sums) {
  using Number = compute_t<T>;
  const index_t channel = (static_cast<index_t>(blockIdx.z) * layer_norm_columns + threadIdx.x) * Vector;
  const index_t first = blockIdx.x * chunk, last = min(rows, first + chunk);
  Number plain[Vector] = {}, along[Vector] = {};
  if (channel < c)
    for (index_t row = first + threadIdx.y; row < last; row += layer_norm_rows) {
      Number value[Vector], gradient[Vector];
      load_numbers<Vector>(x + row * c + channel, value);
      load_numbers<Vector>(dy + row * c + channel, gradient);
      const Number center = mean[row], inverse = inverse_deviation[row];
#pragma unroll
      for (int i = 0; i < Vector; ++i) {
        plain[i] += gradient[i];
        along[i] += gradient[i] * (value[i] - center) * inverse;
      }
    }
  const RowSums<Vector, Number> totals(launched_numbers<Number>(), plain, along);
  const index_t start = static_cast<index_t>(blockIdx.z) * layer_norm_columns * Vector;
  for (index_t at = threadIdx.y * layer_norm_columns + threadIdx.x; at < layer_norm_columns * Vector && start + at < c;
       at += layer_norm_columns * layer_norm_rows) {
    Number* to = sums + (blockIdx.x * c + start + at) * 2;
    to[0] = totals.sums[0][at];
    to[1] = totals.sums[1][at];
  }
}

/// Both sums and dx in one walk, for c of at most 32 Width gradient_vectors; calls `write_weights(count, sums)` for sums[count, c, 2].
/// Vectors are as narrow as fit, so that few lanes have none.
template <class T, class WriteWeights>
void layer_norm_gradients(Context<Cuda>& context, index_t rows, index_t c, const T* x, const T* weight, const compute_t<T>* mean,
                          const compute_t<T>* inverse_deviation, const T* dy, T* dx, bool accumulate, WriteWeights&& write_weights) {
  constexpr int wide = 16 / static_cast<int>(sizeof(T));
  const auto launch = [&](auto vector) {
    constexpr int width = decltype(vector)::value;
    const unsigned blocks = std::min(blocks_for(rows, row_warps), static_cast<unsigned>(gradient_blocks<T>(width) * context.multiprocessors()));
    Scratch<Cuda> scratch(context);
    auto* sums = scratch.template allocate<compute_t<T>>(static_cast<index_t>(blocks) * c * 2);
    const std::size_t shared = static_cast<std::size_t>(2 * c) * sizeof(compute_t<T>);
    context.launch("layer_norm_gradient_kernel", {blocks, 32 * row_warps, shared}, layer_norm_gradient_kernel<width, T>, rows, c, x, weight,
                   mean, inverse_deviation, dy, dx, accumulate, sums);
    write_weights(static_cast<index_t>(blocks), sums);
  };
  constexpr int lanes = 32 * gradient_vectors;
  if (c <= lanes * std::max(1, wide / 4))
    launch(std::integral_constant<int, std::max(1, wide / 4)>{});
  else if (c <= lanes * wide / 2)
    launch(std::integral_constant<int, wide / 2>{});
  else
    launch(std::integral_constant<int, wide>{});
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
