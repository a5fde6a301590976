// SPDX-License-Identifier: MIT
// Contract of the two-dimensional copy behind concatenation, slicing and channel splits.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <class Device>
struct CopyRows {
  LPO_MISSING_KERNEL(Device, "copy_rows");

  /// target[r * target_row + i] (+)= source[r * source_row + i] for r < rows, i < width.
  template <class T>
  static void run(Context<Device>&, index_t rows, index_t width, const T* source, index_t source_row, T* target,
                  index_t target_row, bool accumulate);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
