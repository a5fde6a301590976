// SPDX-License-Identifier: MIT
// Row sums, column sums and sums of squares of the Reference device, in double.
#pragma once

#include <lpo/kernel/reduce.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct Reduce<Reference> {
  template <class T>
  static void row_sums(Context<Reference>&, index_t rows, index_t width, const T* x, T* y) {
    for (index_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (index_t i = 0; i < width; ++i) sum += detail::load_lanes<double>(x + r * width + i);
      detail::store_lanes(y + r, sum);
    }
  }

  template <class T>
  static void column_sums(Context<Reference>&, index_t rows, index_t width, const T* x, T* y, bool accumulate) {
    for (index_t i = 0; i < width; ++i) {
      double sum = accumulate ? detail::load_lanes<double>(y + i) : 0.0;
      for (index_t r = 0; r < rows; ++r) sum += detail::load_lanes<double>(x + r * width + i);
      detail::store_lanes(y + i, sum);
    }
  }

  template <class T>
  static double sum_of_squares(Context<Reference>&, index_t count, const T* x) {
    double sum = 0;
    for (index_t i = 0; i < count; ++i) {
      const double value = detail::load_lanes<double>(x + i);
      sum += value * value;
    }
    return sum;
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
