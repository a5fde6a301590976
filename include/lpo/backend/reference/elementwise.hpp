// SPDX-License-Identifier: MIT
// Fused element-wise statements for the oracle: one thread, double arithmetic whatever the storage.
#pragma once

#include <lpo/tensor/host_evaluate.hpp>

namespace lpo::inline LPO_ABI {

template <>
struct Evaluator<Reference> {
  template <class Tree, class T>
  static void forward(Context<Reference>*, const detail::IterationSpace& space, const Tree& tree, T* out,
                      const void* const* leaves) {
    detail::host_forward<detail::OneLane<double>, double>(nullptr, space, tree, out, leaves);
  }

  template <class Tree, class T>
  static void backward(Context<Reference>* context, const detail::IterationSpace& space, const Tree& tree, const T* out_gradient,
                       const void* const* leaves, void* const* gradients, const bool* accumulate) {
    detail::host_backward<detail::OneLane<double>, double, double>(nullptr, context->scratch(), space, tree, out_gradient,
                                                                   leaves, gradients, accumulate);
  }
};

}  // namespace lpo::inline LPO_ABI
