// SPDX-License-Identifier: MIT
// Classifier-free guidance: the combination of an unconditional and a conditional prediction.
#pragma once

#include <lpo/tensor/operators.hpp>

namespace lpo::inline LPO_ABI {

/// eps_u + w (eps_c - eps_u) (arXiv 2207.12598, in the w >= 1 convention), as one fused expression. On Vars it is one
/// node: d eps_u = (1 - w) d, d eps_c = w d.
template <Operand U, Operand C>
auto guided(U&& unconditional, C&& conditional, double guidance_scale) {
  const auto u = to_expression(std::forward<U>(unconditional));
  return u + guidance_scale * (to_expression(std::forward<C>(conditional)) - u);
}

/// The same for the rows [u ; c] of one network pass: a view or Var [2n, h, w, c] -> expression [n, h, w, c].
template <class Batch>
auto guided_rows(const Batch& rows, double guidance_scale) {
  const auto count = rows.extent(0);
  if (count % 2 != 0)
    throw ShapeError(
        message("[guided_rows] the batch has ", count, " rows; expected the rows [u ; c], an even number"));
  return guided(rows.slice(0, 0, count / 2), rows.slice(0, count / 2, count), guidance_scale);
}

}  // namespace lpo::inline LPO_ABI
