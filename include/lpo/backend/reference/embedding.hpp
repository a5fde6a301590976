// SPDX-License-Identifier: MIT
// The embedding lookup of the Reference device and its gradient.
#pragma once

#include <lpo/kernel/embedding.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct Embedding<Reference> {
  template <class T>
  static void forward(Context<Reference>&, index_t count, index_t width, const std::int32_t* ids, const T* table,
                      T* y) {
    for (index_t i = 0; i < count; ++i)
      for (index_t c = 0; c < width; ++c) y[i * width + c] = table[ids[i] * width + c];
  }

  template <class T>
  static void backward(Context<Reference>&, index_t count, index_t width, index_t vocabulary, const std::int32_t* ids,
                       const T* dy, T* dtable, bool accumulate) {
    for (index_t row = 0; row < vocabulary; ++row)
      for (index_t c = 0; c < width; ++c) {
        T* target = dtable + row * width + c;
        double sum = accumulate ? detail::load_lanes<double>(target) : 0.0;
        for (index_t i = 0; i < count; ++i)
          if (ids[i] == row) sum += detail::load_lanes<double>(dy + i * width + c);
        detail::store_lanes(target, sum);
      }
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
