// SPDX-License-Identifier: MIT
// Reference nearest upsampling and spatial mean with their gradients: plain loops, sums in double.
#pragma once

#include <vector>

#include <lpo/kernel/resample.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct UpsampleNearest<Reference> {
  template <class T>
  static void forward(Context<Reference>&, const UpsampleShape& shape, const T* x, T* y) {
    each(shape, [&](index_t source, index_t target) { y[target] = x[source]; });
  }

  template <class T>
  static void backward(Context<Reference>&, const UpsampleShape& shape, const T* dy, T* dx, bool accumulate) {
    std::vector<double> sum(static_cast<std::size_t>(shape.n * shape.h * shape.w * shape.c), 0.0);
    double* const total = sum.data();
    each(shape, [&](index_t source, index_t target) { total[source] += detail::load_lanes<double>(dy + target); });
    for (std::size_t i = 0; i < sum.size(); ++i)
      detail::store_lanes(dx + i, sum[i] + (accumulate ? detail::load_lanes<double>(dx + i) : 0.0));
  }

 private:
  template <class Body>
  static void each(const UpsampleShape& shape, Body&& body) {
    for (index_t image = 0; image < shape.n; ++image)
      for (index_t i = 0; i < shape.out_h; ++i)
        for (index_t j = 0; j < shape.out_w; ++j)
          for (index_t channel = 0; channel < shape.c; ++channel) {
            const index_t row = i * shape.h / shape.out_h, column = j * shape.w / shape.out_w;
            body(((image * shape.h + row) * shape.w + column) * shape.c + channel,
                 ((image * shape.out_h + i) * shape.out_w + j) * shape.c + channel);
          }
  }
};

template <>
struct SpatialMean<Reference> {
  template <class T>
  static void forward(Context<Reference>&, index_t n, index_t spatial, index_t c, const T* x, T* y) {
    for (index_t i = 0; i < n; ++i)
      for (index_t channel = 0; channel < c; ++channel) {
        double sum = 0.0;
        for (index_t p = 0; p < spatial; ++p) sum += detail::load_lanes<double>(x + (i * spatial + p) * c + channel);
        detail::store_lanes(y + i * c + channel, sum / static_cast<double>(spatial));
      }
  }

  template <class T>
  static void backward(Context<Reference>&, index_t n, index_t spatial, index_t c, const T* dy, T* dx,
                       bool accumulate) {
    for (index_t i = 0; i < n; ++i)
      for (index_t p = 0; p < spatial; ++p)
        for (index_t channel = 0; channel < c; ++channel) {
          T* const target = dx + (i * spatial + p) * c + channel;
          detail::store_lanes(target, detail::load_lanes<double>(dy + i * c + channel) / static_cast<double>(spatial) +
                                          (accumulate ? detail::load_lanes<double>(target) : 0.0));
        }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
