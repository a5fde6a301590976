// SPDX-License-Identifier: MIT
// Fused element-wise statements on the CPU, on all threads: packs of this machine's width for float and 16-bit storage,
// scalars for double.
#pragma once

#include <lpo/backend/cpu/lane_dispatch.hpp>
#include <lpo/tensor/host_evaluate.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

struct MachineLanes {
  template <class Body>
  static void run(Body&& body) {
    with_lanes<float>(body);
  }
};

}  // namespace detail

template <>
struct Evaluator<Cpu> {
  template <class Tree, class T>
  static void forward(Context<Cpu>* context, const detail::IterationSpace& space, const Tree& tree, T* out,
                      const void* const* leaves) {
    Executor* executor = context == nullptr ? nullptr : &context->executor();
    if constexpr (detail::computes_in_double<Tree, T>())
      detail::host_forward<detail::OneLane<double>, double>(executor, space, tree, out, leaves);
    else
      detail::host_forward<detail::MachineLanes, float>(executor, space, tree, out, leaves);
  }

  template <class Tree, class T>
  static void backward(Context<Cpu>* context, const detail::IterationSpace& space, const Tree& tree, const T* out_gradient,
                       const void* const* leaves, void* const* gradients, const bool* accumulate) {
    if constexpr (detail::computes_in_double<Tree, T>())
      detail::host_backward<detail::OneLane<double>, double, double>(&context->executor(), context->scratch(), space, tree,
                                                                     out_gradient, leaves, gradients, accumulate);
    else
      detail::host_backward<detail::MachineLanes, float, float>(&context->executor(), context->scratch(), space, tree,
                                                                out_gradient, leaves, gradients, accumulate);
  }
};

}  // namespace lpo::inline LPO_ABI
#endif
