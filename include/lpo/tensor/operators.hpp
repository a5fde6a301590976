// SPDX-License-Identifier: MIT
// The arithmetic a user writes: + - * / and element-wise functions of tensors, views and Vars. They build, never compute.
#pragma once

#include <lpo/tensor/expression.hpp>

namespace lpo::inline LPO_ABI {

#define LPO_BINARY(symbol, name, Op)                                                                     \
  template <Operand A, Operand B>                                                                        \
  auto name(A&& a, B&& b) -> detail::BinaryResult<op::Op, expression_of<A>, expression_of<B>> {          \
    return detail::combine<op::Op>(symbol, to_expression(std::forward<A>(a)), to_expression(std::forward<B>(b))); \
  }                                                                                                      \
  template <Operand A, Number B>                                                                         \
  auto name(A&& a, B b) {                                                                                \
    return detail::apply_right<op::Op>(to_expression(std::forward<A>(a)), static_cast<double>(b));       \
  }                                                                                                      \
  template <Number A, Operand B>                                                                         \
  auto name(A a, B&& b) {                                                                                \
    return detail::apply_left<op::Op>(static_cast<double>(a), to_expression(std::forward<B>(b)));        \
  }

LPO_BINARY("operator+", operator+, Add)
LPO_BINARY("operator-", operator-, Subtract)
LPO_BINARY("operator*", operator*, Multiply)
LPO_BINARY("operator/", operator/, Divide)
LPO_BINARY("maximum", maximum, Maximum)
LPO_BINARY("minimum", minimum, Minimum)
#undef LPO_BINARY

#define LPO_UNARY(name, Op)                                                  \
  template <Operand X>                                                       \
  auto name(X&& x) {                                                         \
    return detail::apply_unary<op::Op>(to_expression(std::forward<X>(x)));   \
  }

LPO_UNARY(operator-, Negate)
LPO_UNARY(exp, Exp)
LPO_UNARY(log, Log)
LPO_UNARY(sqrt, Sqrt)
LPO_UNARY(square, Square)
LPO_UNARY(abs, Abs)
LPO_UNARY(relu, Relu)
LPO_UNARY(sigmoid, Sigmoid)
LPO_UNARY(silu, Silu)
LPO_UNARY(tanh, Tanh)
LPO_UNARY(gelu, Gelu)
LPO_UNARY(quick_gelu, QuickGelu)
LPO_UNARY(softplus, Softplus)
#undef LPO_UNARY

/// Limits values to [low, high]; the gradient passes inside the interval and at its ends.
template <Operand X>
auto clamp(X&& x, double low, double high) {
  return minimum(maximum(std::forward<X>(x), low), high);
}

}  // namespace lpo::inline LPO_ABI
