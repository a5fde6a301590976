// SPDX-License-Identifier: MIT
// Layer norm and row softmax of CUDA devices: a warp per row.
#pragma once

#include <lpo/backend/cuda/layer_norm_backward.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// A warp walks its row in vectors of 16 bytes; layer norm holds rows of usual lengths in registers meanwhile, for the others
// the second and third walk find the row in L1. Statistics are two-pass, in the type of the arithmetic.

template <int Vector, int Held, class T>
__global__ void __launch_bounds__(32 * row_warps)
    layer_norm_kernel(index_t rows, index_t c, float epsilon, const T* x, const T* weight, const T* bias, T* y, compute_t<T>* mean,
                      compute_t<T>* inverse_deviation) {
  using Number = compute_t<T>;
  const index_t row = row_of_warp();
  if (row >= rows) return;
  const LaneRow<Vector, Held, T> own(x + row * c, c);
  const Number origin = widen(x[row * c]);  // statistics about it, so that a large mean costs nothing
  Number sum{};
  own.walk([&](index_t, const Number(&value)[Vector]) {
#pragma unroll
    for (int i = 0; i < Vector; ++i) sum += value[i] - origin;
  });
  const Number shift = warp_sum(sum) / static_cast<Number>(c);
  Number squares{};
  own.walk([&](index_t, const Number(&value)[Vector]) {
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      const Number distance = (value[i] - origin) - shift;
      squares += distance * distance;
    }
  });
  const Number inverse = 1 / ::sqrt(warp_sum(squares) / static_cast<Number>(c) + static_cast<Number>(epsilon));
  own.walk([&](index_t column, const Number(&value)[Vector]) {
    Number w[Vector], out[Vector];
    load_numbers<Vector>(weight + column, w);
    load_numbers<Vector>(bias + column, out);
#pragma unroll
    for (int i = 0; i < Vector; ++i) out[i] += ((value[i] - origin) - shift) * inverse * w[i];
    store_numbers<Vector>(y + row * c + column, out);
  });
  if (threadIdx.x % 32 == 0) {
    mean[row] = origin + shift;
    inverse_deviation[row] = inverse;
  }
}

template <class T>
__global__ void __launch_bounds__(32 * row_warps) softmax_kernel(index_t rows, index_t c, const T* x, T* y) {
  using Number = compute_t<T>;
  const index_t row = row_of_warp(), lane = threadIdx.x % 32;
  if (row >= rows) return;
  const T* from = x + row * c;
  Number highest = widen(from[0]);
  for (index_t j = lane; j < c; j += 32) highest = max(highest, widen(from[j]));
  highest = warp_max(highest);
  Number sum{};
  for (index_t j = lane; j < c; j += 32) sum += ::exp(widen(from[j]) - highest);
  sum = warp_sum(sum);
  for (index_t j = lane; j < c; j += 32) y[row * c + j] = narrow<T>(::exp(widen(from[j]) - highest) / sum);
}

template <class T>
__global__ void __launch_bounds__(32 * row_warps)
    softmax_backward_kernel(index_t rows, index_t c, const T* y, const T* dy, T* dx, bool accumulate) {
  using Number = compute_t<T>;
  const index_t row = row_of_warp(), lane = threadIdx.x % 32;
  if (row >= rows) return;
  Number along{};
  for (index_t j = lane; j < c; j += 32) along += widen(y[row * c + j]) * widen(dy[row * c + j]);
  along = warp_sum(along);
  for (index_t j = lane; j < c; j += 32) {
    T& to = dx[row * c + j];
    const Number gradient = widen(y[row * c + j]) * (widen(dy[row * c + j]) - along);
    to = narrow<T>(accumulate ? widen(to) + gradient : gradient);
  }
}

}  // namespace detail

namespace kernel {

template <>
struct LayerNorm<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, index_t rows, index_t c, float epsilon, const T* x, const T* weight, const T* bias,
                      T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation) {
    if (rows <= 0 || c <= 0) return;
    by_vectors<T>(c, detail::common_alignment(x, weight, bias, y), [&](auto vector) {
      constexpr int width = decltype(vector)::value;
      const index_t vectors = (c + 32 * width - 1) / (32 * width);
      const auto launch = [&](auto held) {
        context.launch("layer_norm_kernel", detail::row_per_warp(rows), detail::layer_norm_kernel<width, decltype(held)::value, T>,
                       rows, c, epsilon, x, weight, bias, y, mean, inverse_deviation);
      };
      if (width == 1 || vectors > 5)
        launch(std::integral_constant<int, 0>{});
      else if (vectors <= 2)
        launch(std::integral_constant<int, 2>{});
      else if (vectors == 3)
        launch(std::integral_constant<int, 3>{});
      else
        launch(std::integral_constant<int, 5>{});
    });
  }

  template <class T>
  static void backward(Context<Cuda>& context, index_t rows, index_t c, const T* x, const T* weight, const compute_t<T>* mean,
                       const compute_t<T>* inverse_deviation, const T* dy, T* dx, bool accumulate_x, T* dweight,
                       bool accumulate_weight, T* dbias, bool accumulate_bias) {
    if (c <= 0) return;
    by_vectors<T>(c, detail::common_alignment(x, weight, dy, dx), [&](auto vector) {
      constexpr int width = decltype(vector)::value;
      const auto write_weights = [&](index_t count, const compute_t<T>* sums) {
        context.launch("norm_weights_kernel", {detail::blocks_for(c, 32), dim3(32, detail::norm_weights_rows)},
                       detail::norm_weights_kernel<T, compute_t<T>>, count, c, sums, dweight, accumulate_weight, dbias,
                       accumulate_bias);
      };
      if constexpr (width > 1)
        if (dx != nullptr && (dweight != nullptr || dbias != nullptr) && rows > 0 && c <= 32 * width * detail::gradient_vectors)
          return detail::layer_norm_gradients(context, rows, c, x, weight, mean, inverse_deviation, dy, dx, accumulate_x, write_weights);
      if (dx != nullptr && rows > 0) {
        context.launch("layer_norm_dx_kernel", detail::row_per_warp(rows), detail::layer_norm_dx_kernel<width, T>, rows, c, x, weight,
                       mean, inverse_deviation, dy, dx, accumulate_x);
      }
      if (dweight == nullptr && dbias == nullptr) return;
      const index_t tiles = detail::blocks_for(c, detail::layer_norm_columns * width);
      const index_t wanted = std::max<index_t>(1, 4 * context.multiprocessors() / tiles);
      const index_t chunk = std::max<index_t>(4 * detail::layer_norm_rows, (rows + wanted - 1) / wanted), chunks = (rows + chunk - 1) / chunk;
      Scratch<Cuda> scratch(context);
      auto* sums = scratch.template allocate<compute_t<T>>(chunks * c * 2);
      if (chunks > 0) {
        const dim3 grid(static_cast<unsigned>(chunks), 1, static_cast<unsigned>(tiles)), block(detail::layer_norm_columns, detail::layer_norm_rows);
        constexpr std::size_t bytes = 2 * detail::layer_norm_rows * detail::layer_norm_columns * width * sizeof(compute_t<T>);
        context.launch("layer_norm_gradient_sums_kernel", {grid, block, bytes}, detail::layer_norm_gradient_sums_kernel<width, T>,
                       rows, c, chunk, x, mean, inverse_deviation, dy, sums);
      }
      write_weights(chunks, sums);
    });
  }

 private:
  template <class T, class Launch>
  static void by_vectors(index_t c, int alignment, Launch&& launch) {
    constexpr int wide = static_cast<int>(16 / sizeof(T));
    if (c % wide == 0 && alignment == 16)
      launch(std::integral_constant<int, wide>{});
    else
      launch(std::integral_constant<int, 1>{});
  }
};

template <>
struct Softmax<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, index_t rows, index_t c, const T* x, T* y) {
    if (rows <= 0 || c <= 0) return;
    context.launch("softmax_kernel", detail::row_per_warp(rows), detail::softmax_kernel<T>, rows, c, x, y);
  }
  template <class T>
  static void backward(Context<Cuda>& context, index_t rows, index_t c, const T* y, const T* dy, T* dx, bool accumulate) {
    if (rows <= 0 || c <= 0) return;
    context.launch("softmax_backward_kernel", detail::row_per_warp(rows), detail::softmax_backward_kernel<T>, rows, c, y, dy, dx,
                   accumulate);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
