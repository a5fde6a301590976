// SPDX-License-Identifier: MIT
// Contract of the matrix product: C = alpha * op(A) op(B) + beta * C (+ bias), one product or a strided batch.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// Row-major. op(A) is [m, k], op(B) is [k, n], C is [m, n]; `lda`, `ldb`, `ldc` are row strides in elements as stored.
/// With `transpose_b`, B is stored [n, k]: the layout of Linear weights. beta = 0 overwrites C even where it holds NaN.
/// Products accumulate in float or better. m, n or k may be 0 (k = 0 leaves beta * C + bias).
template <class T>
struct GemmParams {
  index_t m = 0, n = 0, k = 0;
  const T* a = nullptr;
  index_t lda = 0;
  bool transpose_a = false;
  const T* b = nullptr;
  index_t ldb = 0;
  bool transpose_b = false;
  T* c = nullptr;
  index_t ldc = 0;
  float alpha = 1.0f;
  float beta = 0.0f;
  const T* bias = nullptr;  ///< [n], added to every row; may be null
  const T* start = nullptr;  ///< what beta multiplies, laid out like C; null means C itself

  index_t batch = 1;  ///< independent products; operands advance by the batch strides (0 shares an operand)
  index_t batch_stride_a = 0, batch_stride_b = 0, batch_stride_c = 0;
};

template <class Device>
struct Gemm {
  LPO_MISSING_KERNEL(Device, "gemm");

  template <class T>
  static void run(Context<Device>&, const GemmParams<T>&);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
