// SPDX-License-Identifier: MIT
// Contract of the cross-entropy of rows of logits against one target class each.
#pragma once

#include <cstdint>

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <class Device>
struct CrossEntropy {
  LPO_MISSING_KERNEL(Device, "cross_entropy");

  /// loss[r] = ln sum_j exp(logits[r, j]) - logits[r, target[r]], stable for any logits.
  template <class T>
  static void forward(Context<Device>&, index_t rows, index_t classes, const T* logits, const std::int32_t* target, T* loss);
  /// dlogits[r, j] (+)= dloss[r] * (softmax(logits[r])_j - [j = target[r]]).
  template <class T>
  static void backward(Context<Device>&, index_t rows, index_t classes, const T* logits, const std::int32_t* target,
                       const T* dloss, T* dlogits, bool accumulate);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
