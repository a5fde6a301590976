// SPDX-License-Identifier: MIT
// Nearest upsampling and the mean over space on CUDA devices.
#pragma once

#include <lpo/backend/cuda/reduce.cuh>
#include <lpo/backend/cuda/statement_axes.cuh>
#include <lpo/kernel/resample.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Position in an NHWC tensor, from the innermost axis outwards: Vector channels of one pixel.
struct PixelDivisors {
  FastDivisor channels, width, height;
};

struct PixelPosition {
  unsigned image, row, column, channel;
};

__device__ __forceinline__ PixelPosition pixel_at(unsigned position, const PixelDivisors& d) {
  const unsigned pixel = d.channels.quotient(position), line = d.width.quotient(pixel), image = d.height.quotient(line);
  return {image, line - image * d.height.divisor, pixel - line * d.width.divisor, position - pixel * d.channels.divisor};
}

/// A thread writes Vector channels of one output pixel.
template <int Vector, class T>
__global__ void __launch_bounds__(256)
    upsample_kernel(const __grid_constant__ kernel::UpsampleShape s, const PixelDivisors d, unsigned count, const T* x, T* y) {
  const unsigned at = blockIdx.x * 256u + threadIdx.x;
  if (at >= count) return;
  const auto p = pixel_at(at, d);
  const index_t row = p.row * s.h / s.out_h, column = p.column * s.w / s.out_w;
  const T* from = x + ((p.image * s.h + row) * s.w + column) * s.c + p.channel * Vector;
  *reinterpret_cast<NumberVector<T, Vector>*>(y + static_cast<index_t>(at) * Vector) =
      *reinterpret_cast<const NumberVector<T, Vector>*>(from);
}

/// A thread sums the output pixels that read Vector channels of one input pixel: those i with i * h / out_h == row.
template <int Vector, class T>
__global__ void __launch_bounds__(256)
    upsample_backward_kernel(const __grid_constant__ kernel::UpsampleShape s, const PixelDivisors d, unsigned count, const T* dy,
                             T* dx, bool accumulate) {
  const unsigned at = blockIdx.x * 256u + threadIdx.x;
  if (at >= count) return;
  const auto p = pixel_at(at, d);
  const index_t top = (p.row * s.out_h + s.h - 1) / s.h, bottom = ((p.row + 1) * s.out_h + s.h - 1) / s.h;
  const index_t left = (p.column * s.out_w + s.w - 1) / s.w, right = ((p.column + 1) * s.out_w + s.w - 1) / s.w;
  compute_t<T> sum[Vector] = {};
  for (index_t i = top; i < bottom; ++i)
    for (index_t j = left; j < right; ++j) {
      compute_t<T> value[Vector];
      load_numbers<Vector>(dy + ((p.image * s.out_h + i) * s.out_w + j) * s.c + p.channel * Vector, value);
#pragma unroll
      for (int k = 0; k < Vector; ++k) sum[k] += value[k];
    }
  T* to = dx + static_cast<index_t>(at) * Vector;
  if (accumulate) {
    compute_t<T> old[Vector];
    load_numbers<Vector>(to, old);
#pragma unroll
    for (int k = 0; k < Vector; ++k) sum[k] += old[k];
  }
  store_numbers<Vector>(to, sum);
}

template <class T>
__global__ void __launch_bounds__(256)
    spatial_mean_backward_kernel(index_t spatial, index_t c, unsigned count, const T* dy, T* dx, bool accumulate) {
  const unsigned at = blockIdx.x * 256u + threadIdx.x;
  if (at >= count) return;
  const index_t image = at / (spatial * c), channel = at % c;
  compute_t<T> value = widen(dy[image * c + channel]) / static_cast<compute_t<T>>(spatial);
  if (accumulate) value += widen(dx[at]);
  dx[at] = narrow<T>(value);
}

}  // namespace detail

namespace kernel {

template <>
struct UpsampleNearest<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, const UpsampleShape& shape, const T* x, T* y) {
    by_vectors<T>(shape, shape.out_h, shape.out_w, x, y, [&](auto vector, const auto& d, unsigned count) {
      constexpr int width = decltype(vector)::value;
      context.launch("upsample_kernel", {detail::blocks_for(count, 256), 256}, detail::upsample_kernel<width, T>, shape, d, count, x,
                     y);
    });
  }
  template <class T>
  static void backward(Context<Cuda>& context, const UpsampleShape& shape, const T* dy, T* dx, bool accumulate) {
    by_vectors<T>(shape, shape.h, shape.w, dy, dx, [&](auto vector, const auto& d, unsigned count) {
      constexpr int width = decltype(vector)::value;
      context.launch("upsample_backward_kernel", {detail::blocks_for(count, 256), 256}, detail::upsample_backward_kernel<width, T>,
                     shape, d, count, dy, dx, accumulate);
    });
  }

 private:
  /// Calls `launch(vector, divisors, threads)` for the n x h x w pixels that threads own.
  template <class T, class Launch>
  static void by_vectors(const UpsampleShape& s, index_t h, index_t w, const T* from, const T* to, Launch&& launch) {
    constexpr int wide = static_cast<int>(16 / sizeof(T));
    const bool vectors = s.c % wide == 0 && detail::common_alignment(from, to) == 16;
    const index_t channels = vectors ? s.c / wide : s.c, count = s.n * h * w * channels;
    if (count <= 0) return;
    if (count >> 31 != 0)
      throw ShapeError(message("[upsample] ", count, " vectors of channels; the CUDA backend covers at most 2^31 - 1, use a smaller batch"));
    const detail::PixelDivisors d{detail::FastDivisor(static_cast<unsigned>(channels)), detail::FastDivisor(static_cast<unsigned>(w)),
                                  detail::FastDivisor(static_cast<unsigned>(h))};
    if (vectors)
      launch(std::integral_constant<int, wide>{}, d, static_cast<unsigned>(count));
    else
      launch(std::integral_constant<int, 1>{}, d, static_cast<unsigned>(count));
  }
};

template <>
struct SpatialMean<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, index_t n, index_t spatial, index_t c, const T* x, T* y) {
    detail::grouped_column_sums(context, n, spatial, c, x, 1.0 / static_cast<double>(spatial), y, false);
  }
  template <class T>
  static void backward(Context<Cuda>& context, index_t n, index_t spatial, index_t c, const T* dy, T* dx, bool accumulate) {
    const index_t count = n * spatial * c;
    if (count <= 0) return;
    if (count >> 31 != 0)
      throw ShapeError(message("[spatial_mean] ", count, " elements; the CUDA backend covers at most 2^31 - 1, use a smaller batch"));
    context.launch("spatial_mean_backward_kernel", {detail::blocks_for(count, 256), 256}, detail::spatial_mean_backward_kernel<T>,
                   spatial, c, static_cast<unsigned>(count), dy, dx, accumulate);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
