// SPDX-License-Identifier: MIT
// Evaluation: one pass computes a statement, one more its gradients. Backends specialise Evaluator.
#pragma once

#include <algorithm>

#include <lpo/tensor/context.hpp>
#include <lpo/tensor/iteration.hpp>

namespace lpo::inline LPO_ABI {

/// The element-wise contract. `forward` writes the statement's value to `out`; `backward` reads the output gradient and
/// the leaves once and writes every leaf gradient. forward's `context` may be null: then the calling thread does the
/// work.
template <class Device>
struct Evaluator {
  template <class Tree, class T>
  static void forward(Context<Device>*, const detail::IterationSpace&, const Tree&, T*, const void* const*) {
    static_assert(
        !LPO_HOST_PASS || detail::always_false<Device>,
        "lpo expression: no backend for this device; include <lpo/lpo.hpp> for Cpu, or <lpo/cuda.cuh> in a CUDA "
        "(.cu) file for Cuda");
  }
  /// `gradients[i]` is leaf i's gradient (same layout as the leaf) or null; `accumulate[i]` adds instead of
  /// overwriting.
  template <class Tree, class T>
  static void backward(Context<Device>*, const detail::IterationSpace&, const Tree&, const T*, const void* const*,
                       void* const*, const bool*) {
    static_assert(
        !LPO_HOST_PASS || detail::always_false<Device>,
        "lpo expression: no backend for this device; include <lpo/lpo.hpp> for Cpu, or <lpo/cuda.cuh> in a CUDA "
        "(.cu) file for Cuda");
  }
};

namespace detail {

/// Storage type and splat flag of a leaf, and those of all leaves of a tree, in order.
template <class T, bool Splat>
struct LeafType {
  using type = T;
  static constexpr bool splat = Splat;
};
template <class... Leaves>
struct LeafTypes {};

template <class... A, class... B>
LeafTypes<A..., B...> joined(LeafTypes<A...>, LeafTypes<B...>);

template <class Tree>
struct LeavesOf;
template <class T, bool Splat>
struct LeavesOf<tree::Argument<T, Splat>> {
  using type = LeafTypes<LeafType<T, Splat>>;
};
template <>
struct LeavesOf<tree::Constant> {
  using type = LeafTypes<>;
};
template <class Op, class A>
struct LeavesOf<tree::Unary<Op, A>> : LeavesOf<A> {};
template <class Op, class A, class B>
struct LeavesOf<tree::Binary<Op, A, B>> {
  using type = decltype(joined(typename LeavesOf<A>::type{}, typename LeavesOf<B>::type{}));
};

/// Calls `visit.operator()<T, Splat>(i)` for every leaf.
template <class Tree, class Visit>
LPO_ALWAYS_INLINE constexpr void for_each_leaf(Visit&& visit) {
  [&]<class... Leaves>(LeafTypes<Leaves...>) __attribute__((always_inline)) {
    [[maybe_unused]] int position = 0;
    (visit.template operator()<typename Leaves::type, Leaves::splat>(position++), ...);
  }(typename LeavesOf<Tree>::type{});
}

/// Whether a statement is computed in double: its target or one of its leaves is.
template <class Tree, class T>
constexpr bool computes_in_double() {
  bool any = std::is_same_v<T, double>;
  for_each_leaf<Tree>([&]<class L, bool Splat>(int) { any = any || std::is_same_v<L, double>; });
  return any;
}

/// Loop nest of an expression assigned to `target`.
template <class E, class T, int Rank, class Device>
IterationSpace iteration_space(const View<T, Rank, Device>& target, const E& expression) {
  // Checked here, once per statement: a check in Expression would repeat itself for every larger part of the statement.
  static_assert(
      E::tree_type::operations <= max_operations,
      "lpo expression: one statement holds at most 40 operations; assign a part of it to a tensor or Var first");
  static_assert(E::tree_type::leaves <= max_leaves, "lpo expression: one statement reads at most 24 tensors; split it");
  bool splat[std::max(1, E::tree_type::leaves)] = {};
  for_each_leaf<typename E::tree_type>([&]<class L, bool Splat>(int i) { splat[i] = Splat; });
  return make_iteration_space(Rank, target.extents.values, target.strides.values, expression.leaves, splat,
                              E::tree_type::leaves);
}

}  // namespace detail

/// Computes `source` into `target` in one pass. Extents must be equal (broadcast happens among the operands). `source` may read
/// the target's memory at the same positions only: overlap is not looked for.
template <class T, int Rank, class Device, Operand X>
void evaluate(Context<Device>* context, const View<T, Rank, Device>& target, X&& source) {
  auto expression = to_expression(std::forward<X>(source));
  using E = decltype(expression);
  static_assert(std::is_same_v<typename E::device, Device>,
                "lpo assignment: target and expression are on different devices; copy one with to_device() first");
  static_assert(E::rank == Rank, "lpo assignment: target and expression have different ranks; reshape one of them");
  if constexpr (E::rank == Rank)
    detail::expect_same("assignment", "target", target.extents, "expression", expression.extents);
  const void* data[std::max(1, E::tree_type::leaves)] = {};
  for (int i = 0; i < E::tree_type::leaves; ++i) data[i] = expression.leaves[i].data;
  Evaluator<Device>::forward(context, detail::iteration_space(target, expression), expression.tree, target.data, data);
}

}  // namespace lpo::inline LPO_ABI
