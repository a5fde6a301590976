// SPDX-License-Identifier: MIT
// Layer norm and row softmax of CUDA devices: a warp per row.
#pragma once

#include <lpo/backend/cuda/group_norm.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// A warp walks its row in vectors of 16 bytes; layer norm holds rows of usual lengths in registers meanwhile, for the others
// the second and third walk find the row in L1. Statistics are two-pass, in the type of the arithmetic.

inline constexpr int row_warps = 8;

/// The row of this warp, or `rows` and more for warps without one.
__device__ __forceinline__ index_t row_of_warp() {
  return static_cast<index_t>(blockIdx.x) * row_warps + threadIdx.x / 32;
}

/// A launch with a warp for each row.
inline LaunchShape row_per_warp(index_t rows) { return {blocks_for(rows, row_warps), 32 * row_warps}; }

/// Calls `body(column)` for this lane's vectors of a row of c numbers.
template <int Vector, class Body>
__device__ __forceinline__ void for_lane_columns(index_t c, Body&& body) {
  for (index_t column = static_cast<index_t>(threadIdx.x % 32) * Vector; column < c; column += 32 * Vector) body(column);
}

/// This lane's vectors of a row: in registers where Held of them cover it; with Held = 0 every walk reads them again.
template <int Vector, int Held, class T>
class LaneRow {
 public:
  __device__ __forceinline__ LaneRow(const T* row, index_t c) : row_(row), c_(c) {
#pragma unroll
    for (int i = 0; i < Held; ++i)
      if (column(i) < c) held_[i] = *reinterpret_cast<const NumberVector<T, Vector>*>(row + column(i));
  }

  /// Calls `body(column, values)` for the vectors.
  template <class Body>
  __device__ __forceinline__ void walk(Body&& body) const {
    compute_t<T> values[Vector];
    if constexpr (Held == 0) {
      for_lane_columns<Vector>(c_, [&](index_t at) {
        load_numbers<Vector>(row_ + at, values);
        body(at, values);
      });
    } else {
#pragma unroll
      for (int i = 0; i < Held; ++i)
        if (column(i) < c_) {
#pragma unroll
          for (int k = 0; k < Vector; ++k) values[k] = widen(held_[i].at[k]);
          body(column(i), values);
        }
    }
  }

 private:
  static __device__ __forceinline__ int column(int i) { return (i * 32 + static_cast<int>(threadIdx.x) % 32) * Vector; }

  const T* row_;
  index_t c_;
  NumberVector<T, Vector> held_[Held > 0 ? Held : 1];
};

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
      context.launch("norm_weights_kernel", {detail::blocks_for(c, 32), 256}, detail::norm_weights_kernel<T, compute_t<T>>, chunks, c, sums, dweight,
                     accumulate_weight, dbias, accumulate_bias);
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
