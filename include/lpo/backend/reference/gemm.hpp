// SPDX-License-Identifier: MIT
// The matrix product of the Reference device: three loops, sums in double.
#pragma once

#include <lpo/kernel/gemm.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct Gemm<Reference> {
  template <class T>
  static void run(Context<Reference>&, const GemmParams<T>& p) {
    for (index_t item = 0; item < p.batch; ++item) {
      const T* a = p.a + item * p.batch_stride_a;
      const T* b = p.b + item * p.batch_stride_b;
      T* c = p.c + item * p.batch_stride_c;
      const T* start = p.start != nullptr ? p.start + item * p.batch_stride_c : c;
      for (index_t i = 0; i < p.m; ++i) {
        for (index_t j = 0; j < p.n; ++j) {
          double sum = 0;
          for (index_t l = 0; l < p.k; ++l) {
            const T* left = p.transpose_a ? a + l * p.lda + i : a + i * p.lda + l;
            const T* right = p.transpose_b ? b + j * p.ldb + l : b + l * p.ldb + j;
            sum += detail::load_lanes<double>(left) * detail::load_lanes<double>(right);
          }
          T* target = c + i * p.ldc + j;
          double value = p.alpha * sum;
          if (p.beta != 0.0f) value += p.beta * detail::load_lanes<double>(start + i * p.ldc + j);
          if (p.bias != nullptr) value += detail::load_lanes<double>(p.bias + j);
          detail::store_lanes(target, value);
        }
      }
    }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
