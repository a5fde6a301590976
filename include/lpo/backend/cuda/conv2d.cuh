// SPDX-License-Identifier: MIT
// The 2-D convolution of CUDA devices and its gradients, and the choice between the ways to compute them.
#pragma once

#include <lpo/backend/cuda/conv2d_boxes.cuh>
#include <lpo/backend/cuda/conv2d_columns.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// Bias gradient: slices of rows are summed side by side, then the slices in order.

inline constexpr int bias_block_rows = 8;

/// partial [slices, width] = sums of the columns of x [rows, width] over each slice. A block is 32 lanes of Count
/// columns by bias_block_rows rows; slice blockIdx.y takes `slice` rows.
template <int Count, class T>
__global__ void bias_slices_kernel(const T* x, index_t rows, index_t width, index_t slice, compute_t<T>* partial) {
  using Number = compute_t<T>;
  __shared__ Number sums[bias_block_rows][32 * Count + 1];
  const index_t column = (static_cast<index_t>(blockIdx.x) * 32 + threadIdx.x) * Count;
  const index_t begin = blockIdx.y * slice, end = begin + slice < rows ? begin + slice : rows;
  Number sum[Count] = {};
  if (column < width)
    for (index_t row = begin + threadIdx.y; row < end; row += bias_block_rows) {
      Number values[Count];
      load_numbers<Count>(x + row * width + column, values);
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
    for (int row = 0; row < bias_block_rows; ++row) total += sums[row][threadIdx.x * Count + i];
    partial[blockIdx.y * width + column + i] = total;
  }
}

/// y[column] (+)= sum of partial [slices, width].
template <class T>
__global__ void sum_slices_kernel(const compute_t<T>* partial, index_t slices, index_t width, T* y, bool accumulate) {
  const index_t column = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= width) return;
  compute_t<T> sum = accumulate ? load_number(y + column) : compute_t<T>{};
  for (index_t slice = 0; slice < slices; ++slice) sum += partial[slice * width + column];
  store_number(y + column, sum);
}

template <class T>
void bias_gradient(Context<Cuda>& context, index_t rows, index_t width, const T* dy, T* dbias, bool accumulate) {
  if (width <= 0) return;
  constexpr int wide = sizeof(T) == 2 ? 4 : 2;
  const bool vectors = width % wide == 0 && common_alignment(dy) == 16;
  const index_t strips = blocks_for(width, 32 * (vectors ? wide : 1));
  // About eight blocks a multiprocessor, each with at least 64 rows.
  const index_t wanted = std::max<index_t>(1, 8 * context.multiprocessors() / strips);
  const index_t slice = std::max<index_t>(64, (rows + wanted - 1) / wanted), slices = blocks_for(rows, slice);
  Scratch<Cuda> scratch(context);
  auto* partial = scratch.template allocate<compute_t<T>>(slices * width);
  if (slices > 0) {
    const dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(slices)), block(32, bias_block_rows);
    const auto kernel = vectors ? bias_slices_kernel<wide, T> : bias_slices_kernel<1, T>;
    kernel<<<grid, block, 0, context.stream()>>>(dy, rows, width, slice, partial);
    context.check_launch("bias_slices_kernel");
  }
  sum_slices_kernel<<<blocks_for(width, 128), 128, 0, context.stream()>>>(partial, slices, width, dbias, accumulate);
  context.check_launch("sum_slices_kernel");
}

}  // namespace detail

namespace kernel {

template <>
struct Conv2d<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, const Conv2dShape& s, const T* x, const T* weight, const T* bias, T* y) {
    if constexpr (sizeof(T) == 2)
      if (!detail::is_pointwise(s) && detail::can_use_boxes<T>(s, x, weight, bias, y))
        return detail::conv2d_boxes_forward(context, s, x, weight, bias, y);
    detail::conv2d_columns_forward(context, s, x, weight, bias, y);
  }

  template <class T>
  static void backward_data(Context<Cuda>& context, const Conv2dShape& s, const T* dy, const T* weight, T* dx,
                            bool accumulate) {
    if constexpr (sizeof(T) == 2)
      if (!detail::is_pointwise(s) && detail::can_use_boxes<T>(s, dy, weight, dx))
        return detail::conv2d_boxes_backward_data(context, s, dy, weight, dx, accumulate);
    detail::conv2d_columns_backward_data(context, s, dy, weight, dx, accumulate);
  }

  template <class T>
  static void backward_weights(Context<Cuda>& context, const Conv2dShape& s, const T* x, const T* dy, T* dweight,
                               bool accumulate_weight, T* dbias, bool accumulate_bias) {
    if (dweight != nullptr) weight_gradient(context, s, x, dy, dweight, accumulate_weight);
    if (dbias != nullptr) detail::bias_gradient(context, s.n * s.out_h() * s.out_w(), s.o, dy, dbias, accumulate_bias);
  }

 private:
  template <class T>
  static void weight_gradient(Context<Cuda>& context, const Conv2dShape& s, const T* x, const T* dy, T* dweight,
                              bool accumulate) {
    if constexpr (sizeof(T) == 2)
      if (!detail::is_pointwise(s) && detail::can_use_boxes<T>(s, x, dy, dweight))
        return detail::conv2d_boxes_backward_weights(context, s, x, dy, dweight, accumulate);
    detail::conv2d_columns_backward_weights(context, s, x, dy, dweight, accumulate);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
