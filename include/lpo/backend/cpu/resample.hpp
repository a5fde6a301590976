// SPDX-License-Identifier: MIT
// Nearest upsampling and spatial mean on the CPU: rows of channels in packs, images and rows over threads.
#pragma once

#include <algorithm>
#include <cstring>

#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/kernel/resample.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct UpsampleNearest<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& ctx, const UpsampleShape& shape, const T* x, T* y) {
    const index_t out_row = shape.out_w * shape.c;
    if (out_row == 0) return;
    ctx.executor().parallel_for(shape.n * shape.out_h, rows_per_chunk(out_row), [&](index_t begin, index_t end) {
      index_t previous = -1;
      for (index_t row = begin; row < end; ++row) {
        const index_t image = row / shape.out_h, source = image * shape.h + row % shape.out_h * shape.h / shape.out_h;
        T* const target = y + row * out_row;
        if (source == previous) {  // the row above repeats
          std::memcpy(static_cast<void*>(target), target - out_row, static_cast<std::size_t>(out_row) * sizeof(T));
          continue;
        }
        previous = source;
        const T* const from = x + source * shape.w * shape.c;
        for (index_t j = 0; j < shape.out_w; ++j)
          std::memcpy(static_cast<void*>(target + j * shape.c), from + j * shape.w / shape.out_w * shape.c,
                      static_cast<std::size_t>(shape.c) * sizeof(T));
      }
    });
  }

  /// Gathers: each element of dx sums the block of dy that was copied from it, in row order.
  template <class T>
  static void backward(Context<Cpu>& ctx, const UpsampleShape& shape, const T* dy, T* dx, bool accumulate) {
    using V = detail::lanes_t<T>;
    const index_t row_size = shape.w * shape.c;
    if (row_size == 0 || shape.h == 0) return;
    const auto first_copy = [](index_t i, index_t size, index_t out) { return (i * out + size - 1) / size; };
    ctx.executor().parallel_for(shape.n * shape.h, rows_per_chunk(row_size), [&](index_t begin, index_t end) {
      for (index_t row = begin; row < end; ++row) {
        const index_t image = row / shape.h, i = row % shape.h;
        const index_t top = first_copy(i, shape.h, shape.out_h), bottom = first_copy(i + 1, shape.h, shape.out_h);
        for (index_t j = 0; j < shape.w; ++j) {
          const index_t left = first_copy(j, shape.w, shape.out_w), right = first_copy(j + 1, shape.w, shape.out_w);
          T* const target = dx + row * row_size + j * shape.c;
          detail::for_lanes<V>(
              0, shape.c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
                V sum{};
                for (index_t a = top; a < bottom; ++a)
                  for (index_t b = left; b < right; ++b)
                    sum += lanes.load(dy + ((image * shape.out_h + a) * shape.out_w + b) * shape.c + at);
                if (accumulate) sum += lanes.load(target + at);
                lanes.store(target + at, sum);
              });
        }
      }
    });
  }

 private:
  static index_t rows_per_chunk(index_t row_size) { return std::max<index_t>(1, 16384 / row_size); }
};

template <>
struct SpatialMean<Cpu> {
  template <class T>
  static void forward(Context<Cpu>& ctx, index_t n, index_t spatial, index_t c, const T* x, T* y) {
    using V = detail::lanes_t<T>;
    using S = typename detail::LaneTraits<V>::scalar;
    if (n == 0 || c == 0) return;
    const index_t block = std::clamp<index_t>(16384 / c, 1, std::max<index_t>(1, spatial));
    const index_t blocks = std::max<index_t>(1, (spatial + block - 1) / block);
    Scratch<Cpu> scratch(ctx);
    S* const partial = scratch.allocate<S>(n * blocks * c);
    const index_t grain = std::max<index_t>(1, 16384 / (block * c));
    ctx.executor().parallel_for(n * blocks, grain, [&](index_t begin, index_t end) {
      for (index_t task = begin; task < end; ++task) {
        const index_t image = task / blocks, first = task % blocks * block, last = std::min(spatial, first + block);
        detail::for_lanes<V>(
            0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
              V sum{};
              for (index_t p = first; p < last; ++p) sum += lanes.load(x + (image * spatial + p) * c + at);
              lanes.store(partial + task * c + at, sum);
            });
      }
    });
    const S inverse = S(1) / static_cast<S>(spatial);
    for (index_t image = 0; image < n; ++image)
      detail::for_lanes<V>(
          0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
            V sum{};
            for (index_t i = 0; i < blocks; ++i) sum += lanes.load(partial + (image * blocks + i) * c + at);
            lanes.store(y + image * c + at, sum * inverse);
          });
  }

  template <class T>
  static void backward(Context<Cpu>& ctx, index_t n, index_t spatial, index_t c, const T* dy, T* dx, bool accumulate) {
    using V = detail::lanes_t<T>;
    using S = typename detail::LaneTraits<V>::scalar;
    if (c == 0) return;
    const S inverse = S(1) / static_cast<S>(spatial);
    ctx.executor().parallel_for(n * spatial, std::max<index_t>(1, 16384 / c), [&](index_t begin, index_t end) {
      for (index_t row = begin; row < end; ++row)
        detail::for_lanes<V>(
            0, c, [&](index_t at, auto lanes) __attribute__((always_inline)) {
              V value = lanes.load(dy + row / spatial * c + at) * inverse;
              if (accumulate) value += lanes.load(dx + row * c + at);
              lanes.store(dx + row * c + at, value);
            });
    });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
