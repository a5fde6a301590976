// SPDX-License-Identifier: MIT
// Contract of the product with a gate behind GEGLU, for devices that make both in one kernel.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// (value, gate) = x W^T + b with W [2 hidden, in], values first; out = value * gelu(gate). x [rows, in] has row stride
/// x_row; `out` [rows, hidden] and `both` [rows, 2 hidden] are dense. Value and gate are rounded to T, as they are in
/// `both`, before they meet.
template <class T>
struct GatedProductParams {
  index_t rows = 0, in = 0, hidden = 0;
  const T* x = nullptr;
  index_t x_row = 0;
  const T* weight = nullptr;
  const T* bias = nullptr;  ///< [2 hidden]; may be null
  T* both = nullptr;        ///< value and gate, for a backward; may be null
  T* out = nullptr;
};

/// For devices without such a kernel `can_run` says so, and a product and a statement do the work.
template <class Device>
struct GatedProduct {
  static_assert(!LPO_HOST_PASS || is_host_device<Device>,
                "lpo kernel: no gated_product for this device; include <lpo/cuda.cuh> in a CUDA (.cu) file for Cuda");

  /// Whether the device has a kernel for these operands. Does not look at the results, so that passes with and without
  /// a backward give the same bits.
  template <class T>
  static bool can_run(Context<Device>&, const GatedProductParams<T>&) {
    return false;
  }
  /// Only where can_run. Results are aligned to 16 bytes.
  template <class T>
  static void run(Context<Device>&, const GatedProductParams<T>&) {}
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
