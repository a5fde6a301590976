// SPDX-License-Identifier: MIT
// The 2-D convolution of the Reference device and its gradients: the defining sums in double, one loop per index.
#pragma once

#include <lpo/kernel/conv2d.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct Conv2d<Reference> {
  template <class T>
  static void forward(Context<Reference>&, const Conv2dShape& s, const T* x, const T* weight, const T* bias, T* y) {
    const index_t out_h = s.out_h(), out_w = s.out_w();
    for (index_t image = 0; image < s.n; ++image)
      for (index_t i = 0; i < out_h; ++i)
        for (index_t j = 0; j < out_w; ++j)
          for (index_t o = 0; o < s.o; ++o) {
            double sum = bias == nullptr ? 0.0 : detail::load_lanes<double>(bias + o);
            for (index_t u = 0; u < s.kernel_h; ++u)
              for (index_t v = 0; v < s.kernel_w; ++v) {
                const index_t row = i * s.stride + u - s.pad_top, column = j * s.stride + v - s.pad_left;
                if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
                const T* pixel = x + ((image * s.h + row) * s.w + column) * s.c;
                const T* tap = weight + ((o * s.kernel_h + u) * s.kernel_w + v) * s.c;
                for (index_t c = 0; c < s.c; ++c)
                  sum += detail::load_lanes<double>(pixel + c) * detail::load_lanes<double>(tap + c);
              }
            detail::store_lanes(y + ((image * out_h + i) * out_w + j) * s.o + o, sum);
          }
  }

  template <class T>
  static void backward_data(Context<Reference>&, const Conv2dShape& s, const T* dy, const T* weight, T* dx,
                            bool accumulate) {
    const index_t out_h = s.out_h(), out_w = s.out_w();
    for (index_t image = 0; image < s.n; ++image)
      for (index_t row = 0; row < s.h; ++row)
        for (index_t column = 0; column < s.w; ++column)
          for (index_t c = 0; c < s.c; ++c) {
            double sum = 0;
            for (index_t u = 0; u < s.kernel_h; ++u)
              for (index_t v = 0; v < s.kernel_w; ++v) {
                const index_t down = row + s.pad_top - u, right = column + s.pad_left - v;
                if (down < 0 || right < 0 || down % s.stride != 0 || right % s.stride != 0) continue;
                const index_t i = down / s.stride, j = right / s.stride;
                if (i >= out_h || j >= out_w) continue;
                for (index_t o = 0; o < s.o; ++o)
                  sum += detail::load_lanes<double>(dy + ((image * out_h + i) * out_w + j) * s.o + o) *
                         detail::load_lanes<double>(weight + ((o * s.kernel_h + u) * s.kernel_w + v) * s.c + c);
              }
            T* target = dx + ((image * s.h + row) * s.w + column) * s.c + c;
            detail::store_lanes(target, accumulate ? sum + detail::load_lanes<double>(target) : sum);
          }
  }

  template <class T>
  static void backward_weights(Context<Reference>&, const Conv2dShape& s, const T* x, const T* dy, T* dweight,
                               bool accumulate_weight, T* dbias, bool accumulate_bias) {
    const index_t out_h = s.out_h(), out_w = s.out_w();
    for (index_t o = 0; o < s.o; ++o) {
      for (index_t u = 0; dweight != nullptr && u < s.kernel_h; ++u)
        for (index_t v = 0; v < s.kernel_w; ++v)
          for (index_t c = 0; c < s.c; ++c) {
            double sum = 0;
            for (index_t image = 0; image < s.n; ++image)
              for (index_t i = 0; i < out_h; ++i)
                for (index_t j = 0; j < out_w; ++j) {
                  const index_t row = i * s.stride + u - s.pad_top, column = j * s.stride + v - s.pad_left;
                  if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
                  sum += detail::load_lanes<double>(dy + ((image * out_h + i) * out_w + j) * s.o + o) *
                         detail::load_lanes<double>(x + ((image * s.h + row) * s.w + column) * s.c + c);
                }
            T* target = dweight + ((o * s.kernel_h + u) * s.kernel_w + v) * s.c + c;
            detail::store_lanes(target, accumulate_weight ? sum + detail::load_lanes<double>(target) : sum);
          }
      if (dbias == nullptr) continue;
      double sum = accumulate_bias ? detail::load_lanes<double>(dbias + o) : 0.0;
      for (index_t pixel = 0; pixel < s.n * out_h * out_w; ++pixel)
        sum += detail::load_lanes<double>(dy + pixel * s.o + o);
      detail::store_lanes(dbias + o, sum);
    }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
