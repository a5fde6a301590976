// SPDX-License-Identifier: MIT
// Contract of sums over rows and columns: means, norms, bias gradients.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <class Device>
struct Reduce {
  LPO_MISSING_KERNEL(Device, "reduce");

  /// y[r] = sum_i x[r * width + i] for r < rows. Sums in float packs with a fixed tree, or better.
  template <class T>
  static void row_sums(Context<Device>&, index_t rows, index_t width, const T* x, T* y);
  /// y[i] (+)= sum_r x[r * width + i] for i < width.
  template <class T>
  static void column_sums(Context<Device>&, index_t rows, index_t width, const T* x, T* y, bool accumulate);
  /// Sum of squares of `count` elements in double, for gradient norms; the result lies in host memory.
  template <class T>
  static double sum_of_squares(Context<Device>&, index_t count, const T* x);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
