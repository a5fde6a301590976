// SPDX-License-Identifier: MIT
// Contract of the projection onto a residual with a low-rank term, for devices that make all of it in one kernel.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// y = x W^T + b + addend + inner U^T. x [rows, in] has row stride x_row; W [out, in], addend and y [rows, out], inner
/// [rows, rank] and U [out, rank] are dense. y is none of the others.
template <class T>
struct ResidualProductParams {
  index_t rows = 0, in = 0, out = 0, rank = 0;
  const T* x = nullptr;
  index_t x_row = 0;
  const T* weight = nullptr;
  const T* bias = nullptr;    ///< [out]; may be null
  const T* addend = nullptr;
  const T* inner = nullptr;   ///< null with rank 0
  const T* up = nullptr;
  T* y = nullptr;
};

/// For devices without such a kernel `can_run` says so, and products of kernel::Gemm do the work.
template <class Device>
struct ResidualProduct {
  static_assert(!LPO_HOST_PASS || is_host_device<Device>,
                "lpo kernel: no residual_product for this device; include <lpo/cuda.cuh> in a CUDA (.cu) file for Cuda");

  /// Whether the device has a kernel for these operands. Does not look at the low-rank term, whose zeros leave the bits
  /// of a product without it.
  template <class T>
  static bool can_run(Context<Device>&, const ResidualProductParams<T>&) {
    return false;
  }
  /// Only where can_run; the rank a multiple of 8.
  template <class T>
  static void run(Context<Device>&, const ResidualProductParams<T>&) {}
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
