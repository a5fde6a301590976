// SPDX-License-Identifier: MIT
// The two-dimensional copy of the Reference device.
#pragma once

#include <lpo/kernel/copy.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct CopyRows<Reference> {
  template <class T>
  static void run(Context<Reference>&, index_t rows, index_t width, const T* source, index_t source_row, T* target,
                  index_t target_row, bool accumulate) {
    for (index_t r = 0; r < rows; ++r)
      for (index_t i = 0; i < width; ++i) {
        const T* from = source + r * source_row + i;
        T* to = target + r * target_row + i;
        if (accumulate)
          detail::store_lanes(to, detail::load_lanes<double>(to) + detail::load_lanes<double>(from));
        else
          *to = *from;
      }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
