// SPDX-License-Identifier: MIT
// Fused element-wise statements on CUDA devices: one kernel forward; backward one for each set of axes that some leaf is
// broadcast along, or one, and one for all sums.
#pragma once

#include <algorithm>
#include <type_traits>

#include <lpo/backend/cuda/statement_backward.cuh>
#include <lpo/backend/cuda/statement_leaves.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// Formula: out = tree(leaves).
// Launch: a thread owns Vector elements side by side, 16 bytes of the narrowest operand.
// Numerics: float (double if an operand is), rounded once on storing.
// Limits: operands whose elements lie further apart than 2^31 - 1.

template <class Tree, class T>
struct ForwardArguments {
  static constexpr int operands = Tree::leaves + 1;
  Tree tree;
  T* out;
  const void* data[operands];
  AxisList<operands> axes;
  unsigned count;  ///< groups of Vector elements
};

template <int Vector, class Number, class Tree, class T>
__global__ void __launch_bounds__(256) statement_forward_kernel(const __grid_constant__ ForwardArguments<Tree, T> a) {
  const unsigned group = blockIdx.x * 256u + threadIdx.x;
  if (group >= a.count) return;
  using Access = LeafAccessOf<Tree, Number, Vector>;
  int offset[a.operands] = {};
  a.axes.locate(group * Vector, offset);
  Number leaves[Access::slots][Vector];
  Access::load(a.data, offset, leaves);
  Number out[Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    typename Tree::template State<Number> state;
    out[i] = a.tree.template forward<0, Number>(RegisterLeaves<Access::slots, Vector, Number>{leaves, i}, state);
  }
  store_numbers<Vector>(a.out + offset[0], out);
}

template <int Vector, class Number, class Tree, class T>
void launch_forward(Context<Cuda>* context, const IterationSpace& space, const Tree& tree, T* out, const void* const* data) {
  ForwardArguments<Tree, T> a{tree, out, {}, {}, 0};
  std::copy_n(data, Tree::leaves, a.data);
  a.axes = AxisList<Tree::leaves + 1>(space, ~0u);
  a.count = static_cast<unsigned>(space.size() / Vector);
  const LaunchShape shape{blocks_for(a.count, 256), 256};
  const auto kernel = statement_forward_kernel<Vector, Number, Tree, T>;
  if (context != nullptr)
    context->launch("statement_forward_kernel", shape, kernel, a);
  else
    launch_kernel("statement_forward_kernel", shape, nullptr, false, kernel, a);
}

}  // namespace detail

template <>
struct Evaluator<Cuda> {
  template <class Tree, class T>
  static void forward(Context<Cuda>* context, const detail::IterationSpace& space, const Tree& tree, T* out,
                      const void* const* data) {
    using Number = std::conditional_t<detail::computes_in_double<Tree, T>(), double, float>;
    if (space.size() == 0) return;
    constexpr int vector = detail::statement_vector<Tree, T>();
    if (vector > 1 && detail::moves_in_vectors<Tree, T>(space, vector, out, data, nullptr))
      detail::launch_forward<vector, Number>(context, space, tree, out, data);
    else
      detail::launch_forward<1, Number>(context, space, tree, out, data);
  }

  template <class Tree, class T>
  static void backward(Context<Cuda>* context, const detail::IterationSpace& space, const Tree& tree, const T* out_gradient,
                       const void* const* data, void* const* gradients, const bool* accumulate) {
    using Number = std::conditional_t<detail::computes_in_double<Tree, T>(), double, float>;
    detail::StatementBackward<Number, Tree, T>(*context, space, tree, out_gradient, data, gradients, accumulate).run();
  }
};

}  // namespace lpo::inline LPO_ABI
