// SPDX-License-Identifier: MIT
// Row sums, column sums and sums of squares of CUDA devices: partial sums in float, the partial sums in double, in order.
#pragma once

#include <vector>

#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/reduce.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Block (piece, row): partial[row, piece] = sum of one piece of a row.
template <class T>
__global__ void __launch_bounds__(256)
    row_sums_kernel(index_t width, index_t piece, const T* x, index_t pieces, compute_t<T>* partial) {
  __shared__ compute_t<T> shared[8];
  const index_t row = blockIdx.x / pieces, part = blockIdx.x % pieces;
  const index_t end = min(width, (part + 1) * piece);
  compute_t<T> sum{};
  for (index_t i = part * piece + threadIdx.x; i < end; i += 256) sum += widen(x[row * width + i]);
  const compute_t<T> total = block_sum<256>(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

/// y[row] = sum of a narrow row; a warp per row.
template <class T>
__global__ void __launch_bounds__(256) narrow_row_sums_kernel(index_t rows, index_t width, const T* x, T* y) {
  const index_t row = static_cast<index_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  compute_t<T> sum{};
  for (index_t i = threadIdx.x % 32; i < width; i += 32) sum += widen(x[row * width + i]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) y[row] = narrow<T>(sum);
}

/// y[group, i] (+)= scale * sum over parts of partial [groups, parts, width], in order.
template <class T>
__global__ void __launch_bounds__(256)
    ordered_sum_kernel(index_t groups, index_t parts, index_t width, const compute_t<T>* partial, double scale, T* y,
                       bool accumulate) {
  const index_t i = static_cast<index_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= groups * width) return;
  const compute_t<T>* const first = partial + i / width * parts * width + i % width;
  double total = 0;
  for (index_t part = 0; part < parts; ++part) total += static_cast<double>(first[part * width]);
  total *= scale;
  if (accumulate) total += static_cast<double>(widen(y[i]));
  y[i] = narrow<T>(static_cast<compute_t<T>>(total));
}

inline constexpr int column_sum_rows = 8;

/// partial [groups, parts, width] = sums of the columns of x [groups, rows, width] over parts of `height` rows. A block is
/// 32 lanes of Count columns by column_sum_rows rows; blockIdx.x is group * strips + strip, blockIdx.y the part.
template <int Count, class T>
__global__ void column_sums_kernel(index_t rows, index_t width, index_t height, index_t strips, const T* x,
                                   compute_t<T>* partial) {
  using Number = compute_t<T>;
  __shared__ Number sums[column_sum_rows][32 * Count + 1];
  const index_t group = blockIdx.x / strips, column = (blockIdx.x % strips * 32 + threadIdx.x) * Count;
  const index_t begin = blockIdx.y * height, end = begin + height < rows ? begin + height : rows;
  Number sum[Count] = {};
  if (column < width)
    for (index_t row = begin + threadIdx.y; row < end; row += column_sum_rows) {
      Number values[Count];
      load_numbers<Count>(x + (group * rows + row) * width + column, values);
#pragma unroll
      for (int i = 0; i < Count; ++i) sum[i] += values[i];
    }
#pragma unroll
  for (int i = 0; i < Count; ++i) sums[threadIdx.y][threadIdx.x * Count + i] = sum[i];
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    Number total{};
#pragma unroll
    for (int row = 0; row < column_sum_rows; ++row) total += sums[row][threadIdx.x * Count + i];
    partial[(group * gridDim.y + blockIdx.y) * width + column + i] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(256) squares_kernel(index_t count, index_t piece, const T* x, double* partial) {
  __shared__ double shared[8];
  const index_t begin = static_cast<index_t>(blockIdx.x) * piece, end = min(count, begin + piece);
  double sum = 0;
  for (index_t i = begin + threadIdx.x; i < end; i += 256) {
    const auto value = static_cast<double>(widen(x[i]));
    sum += value * value;
  }
  const double total = block_sum<256>(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

/// y [groups, width] (+)= scale * sums over the rows of x [groups, rows, width].
template <class T>
void grouped_column_sums(Context<Cuda>& context, index_t groups, index_t rows, index_t width, const T* x, double scale, T* y,
                         bool accumulate) {
  if (groups <= 0 || width <= 0) return;
  constexpr int wide = sizeof(T) == 2 ? 4 : 2;
  const bool vectors = width % wide == 0 && common_alignment(x) == 16;
  const index_t strips = blocks_for(width, 32 * (vectors ? wide : 1));
  // About eight blocks a multiprocessor, each with at least 64 rows.
  const index_t wanted = std::max<index_t>(1, 8 * context.multiprocessors() / (groups * strips));
  const index_t height = std::max<index_t>(64, (rows + wanted - 1) / wanted), parts = blocks_for(rows, height);
  Scratch<Cuda> scratch(context);
  auto* partial = scratch.template allocate<compute_t<T>>(groups * parts * width);
  if (parts > 0) {
    const dim3 grid(static_cast<unsigned>(groups * strips), static_cast<unsigned>(parts)), block(32, column_sum_rows);
    const auto kernel = vectors ? column_sums_kernel<wide, T> : column_sums_kernel<1, T>;
    context.launch("column_sums_kernel", {grid, block}, kernel, rows, width, height, strips, x, partial);
  }
  context.launch("ordered_sum_kernel", {blocks_for(groups * width, 256), 256}, ordered_sum_kernel<T>, groups, parts, width,
                 partial, scale, y, accumulate);
}

}  // namespace detail

namespace kernel {

template <>
struct Reduce<Cuda> {
  template <class T>
  static void row_sums(Context<Cuda>& context, index_t rows, index_t width, const T* x, T* y) {
    if (rows <= 0) return;
    if (width <= 256) {
      context.launch("narrow_row_sums_kernel", {detail::blocks_for(rows, 8), 256}, detail::narrow_row_sums_kernel<T>, rows, width, x,
                     y);
      return;
    }
    constexpr index_t piece = 8192;
    const index_t pieces = std::max<index_t>(1, (width + piece - 1) / piece);
    Scratch<Cuda> scratch(context);
    auto* partial = scratch.template allocate<compute_t<T>>(rows * pieces);
    context.launch("row_sums_kernel", {static_cast<unsigned>(rows * pieces), 256}, detail::row_sums_kernel<T>, width, piece, x,
                   pieces, partial);
    context.launch("ordered_sum_kernel", {detail::blocks_for(rows, 256), 256}, detail::ordered_sum_kernel<T>, rows, pieces,
                   index_t{1}, partial, 1.0, y, false);
  }

  template <class T>
  static void column_sums(Context<Cuda>& context, index_t rows, index_t width, const T* x, T* y, bool accumulate) {
    detail::grouped_column_sums(context, 1, rows, width, x, 1.0, y, accumulate);
  }

  /// Waits for the result.
  template <class T>
  static double sum_of_squares(Context<Cuda>& context, index_t count, const T* x) {
    if (count <= 0) return 0;
    const index_t parts = std::min<index_t>(1024, (count + 4095) / 4096), piece = (count + parts - 1) / parts;
    Scratch<Cuda> scratch(context);
    auto* partial = scratch.template allocate<double>(parts);
    context.launch("squares_kernel", {static_cast<unsigned>(parts), 256}, detail::squares_kernel<T>, count, piece, x, partial);
    std::vector<double> sums(static_cast<std::size_t>(parts));
    context.copy_to_host(sums.data(), partial, sums.size() * sizeof(double));
    double total = 0;
    for (const double sum : sums) total += sum;
    return total;
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
