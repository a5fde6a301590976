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

/// y[i] (+)= sum over parts of partial[part, i], in order; `step_part` and `step_i` are distances in `partial`. Block
/// row y does so for the y-th of stacked vectors y and matrices of partial sums.
template <class T>
__global__ void __launch_bounds__(256)
    ordered_sum_kernel(index_t count, index_t parts, index_t step_i, index_t step_part, const compute_t<T>* partial, double scale,
                       T* y, bool accumulate) {
  const index_t i = static_cast<index_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  partial += static_cast<index_t>(blockIdx.y) * count * parts;
  y += static_cast<index_t>(blockIdx.y) * count;
  double total = 0;
  for (index_t part = 0; part < parts; ++part) total += static_cast<double>(partial[part * step_part + i * step_i]);
  total *= scale;
  if (accumulate) total += static_cast<double>(widen(y[i]));
  y[i] = narrow<T>(static_cast<compute_t<T>>(total));
}

/// Block (columns, part, group): partial[group, part, i] = sum over the part's rows of x[group, row, i]; a thread owns
/// one column.
template <class T>
__global__ void __launch_bounds__(256)
    column_sums_kernel(index_t rows, index_t width, index_t height, const T* x, compute_t<T>* partial) {
  const index_t column = static_cast<index_t>(blockIdx.x) * 32 + threadIdx.x % 32, lane = threadIdx.x / 32;
  __shared__ compute_t<T> shared[8][33];
  const index_t first = static_cast<index_t>(blockIdx.y) * height, last = min(rows, first + height);
  x += static_cast<index_t>(blockIdx.z) * rows * width;
  partial += static_cast<index_t>(blockIdx.z) * gridDim.y * width;
  compute_t<T> sum{};
  if (column < width)
    for (index_t row = first + lane; row < last; row += 8) sum += widen(x[row * width + column]);
  shared[lane][threadIdx.x % 32] = sum;
  __syncthreads();
  if (lane != 0 || column >= width) return;
#pragma unroll
  for (int other = 1; other < 8; ++other) sum += shared[other][threadIdx.x];
  partial[static_cast<index_t>(blockIdx.y) * width + column] = sum;
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

/// y[group, i] = scale * sum over rows of x[group, row, i] for `groups` stacked matrices.
template <class T>
void grouped_column_sums(Context<Cuda>& context, index_t groups, index_t rows, index_t width, const T* x, double scale, T* y,
                         bool accumulate) {
  constexpr index_t height = 128, groups_at_once = 32768;  // a grid has at most 65535 blocks along y and z
  const index_t parts = std::max<index_t>(1, (rows + height - 1) / height);
  for (index_t first = 0; first < groups; first += groups_at_once) {
    const auto count = static_cast<unsigned>(std::min(groups_at_once, groups - first));
    Scratch<Cuda> scratch(context);
    auto* partial = scratch.template allocate<compute_t<T>>(static_cast<index_t>(count) * parts * width);
    const dim3 grid(blocks_for(width, 32), static_cast<unsigned>(parts), count);
    column_sums_kernel<<<grid, 256, 0, context.stream()>>>(rows, width, height, x + first * rows * width, partial);
    context.check_launch("column_sums_kernel");
    const dim3 columns(blocks_for(width, 256), count);
    ordered_sum_kernel<T>
        <<<columns, 256, 0, context.stream()>>>(width, parts, 1, width, partial, scale, y + first * width, accumulate);
    context.check_launch("ordered_sum_kernel");
  }
}

}  // namespace detail

namespace kernel {

template <>
struct Reduce<Cuda> {
  template <class T>
  static void row_sums(Context<Cuda>& context, index_t rows, index_t width, const T* x, T* y) {
    if (rows <= 0) return;
    constexpr index_t piece = 8192;
    const index_t pieces = std::max<index_t>(1, (width + piece - 1) / piece);
    Scratch<Cuda> scratch(context);
    auto* partial = scratch.template allocate<compute_t<T>>(rows * pieces);
    detail::row_sums_kernel<<<static_cast<unsigned>(rows * pieces), 256, 0, context.stream()>>>(width, piece, x, pieces, partial);
    context.check_launch("row_sums_kernel");
    detail::ordered_sum_kernel<T><<<detail::blocks_for(rows, 256), 256, 0, context.stream()>>>(rows, pieces, pieces, 1, partial,
                                                                                              1.0, y, false);
    context.check_launch("ordered_sum_kernel");
  }

  template <class T>
  static void column_sums(Context<Cuda>& context, index_t rows, index_t width, const T* x, T* y, bool accumulate) {
    if (width > 0) detail::grouped_column_sums(context, 1, rows, width, x, 1.0, y, accumulate);
  }

  /// Waits for the result.
  template <class T>
  static double sum_of_squares(Context<Cuda>& context, index_t count, const T* x) {
    if (count <= 0) return 0;
    const index_t parts = std::min<index_t>(1024, (count + 4095) / 4096), piece = (count + parts - 1) / parts;
    Scratch<Cuda> scratch(context);
    auto* partial = scratch.template allocate<double>(parts);
    detail::squares_kernel<<<static_cast<unsigned>(parts), 256, 0, context.stream()>>>(count, piece, x, partial);
    context.check_launch("squares_kernel");
    std::vector<double> sums(static_cast<std::size_t>(parts));
    context.copy_to_host(sums.data(), partial, sums.size() * sizeof(double));
    double total = 0;
    for (const double sum : sums) total += sum;
    return total;
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
