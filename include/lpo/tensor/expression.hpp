// SPDX-License-Identifier: MIT
// Expression: what an operator returns — a tree type plus the leaves it reads. Nothing is computed until it is assigned.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

#include <lpo/tensor/tree.hpp>
#include <lpo/tensor/view.hpp>

namespace lpo::inline LPO_ABI {

/// Channel width that is known at run time only.
inline constexpr int dynamic = -1;

namespace detail {

inline constexpr int max_rank = 6;

/// One leaf of an expression: memory, layout and, for rvalue operands, shared ownership (so `auto e = f(make())` never
/// dangles). `slot` is the tape's handle when the leaf is a Var, otherwise null.
struct Leaf {
  const void* data = nullptr;
  index_t extents[max_rank] = {};
  index_t strides[max_rank] = {};
  int rank = 0;
  void* slot = nullptr;
  std::shared_ptr<const void> owner;
};

template <class T, int Rank, class Device>
Leaf make_leaf(const View<T, Rank, Device>& view) {
  Leaf leaf;
  leaf.data = view.data;
  leaf.rank = Rank;
  for (int axis = 0; axis < Rank; ++axis) {
    leaf.extents[axis] = view.extents[axis];
    leaf.strides[axis] = view.strides[axis];
  }
  return leaf;
}

/// Numpy's rule from the innermost axis outwards, except that the innermost axis itself broadcasts only through
/// `bcast_last`, so that a kernel knows at compile time whether to load a pack or to splat.
template <int Rank, int RankA, int RankB>
Extents<Rank> broadcast_extents(const char* operation, const Extents<RankA>& a, bool a_splat, const Extents<RankB>& b,
                                bool b_splat) {
  Extents<Rank> out{};
  for (int axis = 0; axis < Rank; ++axis) {
    const int ia = axis - (Rank - RankA), ib = axis - (Rank - RankB);
    const index_t sa = ia < 0 ? 1 : a[ia], sb = ib < 0 ? 1 : b[ib];
    if (sa != sb && sa != 1 && sb != 1)
      throw ShapeError(message("[", operation, "] extents ", to_string(a), " and ", to_string(b), " do not broadcast"));
    if (axis == Rank - 1 && sa != sb && !(sa == 1 ? a_splat : b_splat))
      throw ShapeError(message("[", operation, "] innermost axes of ", to_string(a), " and ", to_string(b),
                               " differ; write bcast_last(x) to broadcast a size-1 innermost axis"));
    out[axis] = sa == 1 ? sb : sa;
  }
  return out;
}

template <class A, class B>
struct Promote {
  using type = std::conditional_t<std::is_same_v<A, B>, A, std::common_type_t<compute_t<A>, compute_t<B>>>;
};

constexpr int combined_channels(int a, int b) { return a == dynamic ? b : a; }

inline constexpr int max_operations = 40;

/// Operands are recorded on one tape at most; a null tape is that of a plain tensor.
inline void* common_tape(const char* operation, void* a, void* b) {
  if (a != nullptr && b != nullptr && a != b)
    throw ValueError(message("[", operation, "] the operands are recorded on different tapes; use one tape per forward"));
  return a != nullptr ? a : b;
}

}  // namespace detail

/// Lazily evaluated element-wise arithmetic. `Tree` is the structure, `T` the storage type of the result, `Channels` its
/// static innermost width (or `dynamic`), `Tracked` tells whether a tape records the statement.
template <class Tree, class T, int Rank, class Device, int Channels, bool Tracked>
struct Expression {
  using lpo_operand = void;
  using tree_type = Tree;
  using value_type = T;
  using device = Device;
  static constexpr int rank = Rank;
  static constexpr int channels = Channels;
  static constexpr bool tracked = Tracked;

  Tree tree;
  detail::Leaf leaves[Tree::leaves == 0 ? 1 : Tree::leaves];
  Extents<Rank> extents;
  void* tape = nullptr;  ///< the recording Tape<Device>, when Tracked
};

/// Tensors, views, Vars and expressions of them: what the element-wise operators accept.
template <class X>
concept Operand = requires { typename std::remove_cvref_t<X>::lpo_operand; };

template <class X>
concept Number = std::is_arithmetic_v<std::remove_cvref_t<X>>;

/// An expression is its own expression.
template <class Tree, class T, int Rank, class Device, int Channels, bool Tracked>
Expression<Tree, T, Rank, Device, Channels, Tracked> to_expression(
    Expression<Tree, T, Rank, Device, Channels, Tracked> expression) {
  return expression;
}

template <class T, int Rank, class Device>
auto to_expression(const View<T, Rank, Device>& view) {
  using Value = std::remove_const_t<T>;
  return Expression<tree::Argument<Value, false>, Value, Rank, Device, dynamic, false>{
      {}, {detail::make_leaf(view)}, view.extents, nullptr};
}

template <class X>
using expression_of = decltype(to_expression(std::declval<X>()));

/// True when `a + b` is well formed: same device, compatible static channel widths.
template <class A, class B>
concept elementwise_compatible =
    Operand<A> && Operand<B> && std::is_same_v<typename expression_of<A>::device, typename expression_of<B>::device> &&
    (expression_of<A>::channels == expression_of<B>::channels || expression_of<A>::channels == dynamic ||
     expression_of<B>::channels == dynamic);

namespace detail {

template <class Op, class EA, class EB>
using BinaryResult = Expression<tree::Binary<Op, typename EA::tree_type, typename EB::tree_type>,
                                typename Promote<typename EA::value_type, typename EB::value_type>::type,
                                (EA::rank > EB::rank ? EA::rank : EB::rank), typename EA::device,
                                combined_channels(EA::channels, EB::channels), EA::tracked || EB::tracked>;

template <class Op, class EA, class EB>
BinaryResult<Op, EA, EB> combine(const char* operation, EA a, EB b) {
  static_assert(std::is_same_v<typename EA::device, typename EB::device>,
                "lpo operator: operands are on different devices; copy one with to_device() first");
  static_assert(EA::channels == EB::channels || EA::channels == dynamic || EB::channels == dynamic,
                "lpo operator: static channel widths differ; project one operand to the other's width");
  using Result = BinaryResult<Op, EA, EB>;
  Result result{{std::move(a.tree), std::move(b.tree)}, {}, {}, common_tape(operation, a.tape, b.tape)};
  result.extents = broadcast_extents<Result::rank>(operation, a.extents, EA::tree_type::splat, b.extents, EB::tree_type::splat);
  for (int i = 0; i < EA::tree_type::leaves; ++i) result.leaves[i] = std::move(a.leaves[i]);
  for (int i = 0; i < EB::tree_type::leaves; ++i) result.leaves[EA::tree_type::leaves + i] = std::move(b.leaves[i]);
  return result;
}

template <class Tree, class E>
using WithTree = Expression<Tree, typename E::value_type, E::rank, typename E::device, E::channels, E::tracked>;

template <class Tree, class E>
WithTree<Tree, E> rebuild(Tree tree, E&& e) {
  WithTree<Tree, E> result{std::move(tree), {}, e.extents, e.tape};
  for (int i = 0; i < Tree::leaves; ++i) result.leaves[i] = std::move(e.leaves[i]);
  return result;
}

/// The same expression, its static width no longer part of the type.
template <class Tree, class T, int Rank, class Device, int Channels, bool Tracked>
Expression<Tree, T, Rank, Device, dynamic, Tracked> forget_channels(Expression<Tree, T, Rank, Device, Channels, Tracked> e) {
  if constexpr (Channels == dynamic) {
    return e;
  } else {
    Expression<Tree, T, Rank, Device, dynamic, Tracked> plain{std::move(e.tree), {}, e.extents, e.tape};
    for (int i = 0; i < Tree::leaves; ++i) plain.leaves[i] = std::move(e.leaves[i]);
    return plain;
  }
}

template <class Op, class E>
auto apply_unary(E e) -> WithTree<tree::Unary<Op, typename E::tree_type>, E> {
  return rebuild(tree::Unary<Op, typename E::tree_type>{e.tree}, std::move(e));
}

template <class Op, class E>
auto apply_right(E e, double number) -> WithTree<tree::Binary<Op, typename E::tree_type, tree::Constant>, E> {
  return rebuild(tree::Binary<Op, typename E::tree_type, tree::Constant>{e.tree, {number}}, std::move(e));
}

template <class Op, class E>
auto apply_left(double number, E e) -> WithTree<tree::Binary<Op, tree::Constant, typename E::tree_type>, E> {
  return rebuild(tree::Binary<Op, tree::Constant, typename E::tree_type>{{number}, e.tree}, std::move(e));
}

}  // namespace detail

/// Marks a leaf whose innermost axis has size 1 to be repeated along the other operand's innermost axis.
template <Operand X>
auto bcast_last(X&& x) {
  auto e = to_expression(std::forward<X>(x));
  using E = decltype(e);
  static_assert(E::tree_type::leaves == 1 && E::tree_type::operations == 0,
                "lpo bcast_last: takes a tensor, view or Var; assign the expression to one first");
  if (e.extents[E::rank - 1] != 1)
    throw ShapeError(message("[bcast_last] innermost axis of ", to_string(e.extents), " must have size 1"));
  Expression<tree::Argument<typename E::value_type, true>, typename E::value_type, E::rank, typename E::device, dynamic,
             E::tracked>
      marked{{}, {std::move(e.leaves[0])}, e.extents, e.tape};
  return marked;
}

}  // namespace lpo::inline LPO_ABI
