// SPDX-License-Identifier: MIT
// Classifier-free guidance: the combination of an unconditional and a conditional prediction.
#pragma once

#include <cmath>
#include <span>
#include <type_traits>
#include <vector>

#include <lpo/base/scalar.hpp>
#include <lpo/diffusion/gaussian_step.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
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

/// The same in half arithmetic, where the rows and the result of each operation are rounded to half: views [2n, h, w, c] of
/// any type -> `combined` [n, h, w, c].
template <class T, class Device, class C = T>
void guide_in_half(Context<Device>& context, std::type_identity_t<View<const C, 4, Device>> rows, double guidance_scale,
                   const View<T, 4, Device>& combined) {
  const index_t n = rows.extents[0] / 2;
  auto expected = combined.extents;
  expected[0] *= 2;
  detail::expect_same("guide_in_half", "rows", rows.extents, "twice the result's", expected);
  Scratch<Device> scratch(context);
  const View<half, 4, Device> both(scratch.template allocate<half>(rows.size()), rows.extents);
  const View<half, 4, Device> u = both.slice(0, 0, n), c = both.slice(0, n, 2 * n);
  evaluate(&context, both, 1.0 * rows);
  evaluate(&context, c, c - u);
  evaluate(&context, c, guidance_scale * c);
  evaluate(&context, c, u + c);
  evaluate(&context, combined, 1.0 * c);
}

namespace detail {

/// Norm of every row's deviation from its mean; [n, h, w, c] -> n host values.
template <class T, class Device>
std::vector<double> row_deviations(Context<Device>& context, View<const T, 4, Device> rows) {
  using Number = compute_t<T>;
  const index_t count = rows.extent(0), width = count == 0 ? 0 : rows.size() / count;
  Scratch<Device> scratch(context);
  const View<Number, 4, Device> values(scratch.template allocate<Number>(rows.size()), rows.extents);
  evaluate(&context, values, 1.0 * rows);
  auto sums = host_row_sums(context, values.data, count, width);
  for (double& sum : sums) sum /= static_cast<double>(width);
  const auto means = row_coefficients(context, scratch.template allocate<Number>(count), std::span<const double>(sums));
  evaluate(&context, values, square(rows - bcast_last(means)));
  sums = host_row_sums(context, values.data, count, width);
  for (double& sum : sums) sum = std::sqrt(sum);
  return sums;
}

}  // namespace detail

/// Gives each row of `guided`, in place, phi times the standard deviation of the conditional prediction and 1 - phi
/// times its own (arXiv 2305.08891 eq. 15 and 16, phi = `guidance_rescale` from 0 to 1): strong guidance otherwise
/// overexposes pictures of models with zero terminal SNR. Views [n, h, w, c];
/// `conditional` may be stored as another type C.
template <class T, class Device, class C = T>
void rescale_guidance(Context<Device>& context, const View<T, 4, Device>& guided,
                      std::type_identity_t<View<const C, 4, Device>> conditional, double guidance_rescale) {
  detail::expect_same("rescale_guidance", "guided", guided.extents, "conditional", conditional.extents);
  if (!(guidance_rescale >= 0 && guidance_rescale <= 1))
    throw ValueError(message("[rescale_guidance] guidance_rescale is ", guidance_rescale, ", expected 0 to 1"));
  auto factors = detail::row_deviations<T, Device>(context, guided);
  const auto wanted = detail::row_deviations<C, Device>(context, conditional);
  for (std::size_t i = 0; i < factors.size(); ++i)  // a constant row has no deviation to scale
    factors[i] = factors[i] > 0 ? guidance_rescale * wanted[i] / factors[i] + (1 - guidance_rescale) : 1;
  using Number = compute_t<T>;
  Scratch<Device> scratch(context);
  const auto factor = detail::row_coefficients(context, scratch.template allocate<Number>(guided.extent(0)),
                                               std::span<const double>(factors));
  evaluate(&context, guided, bcast_last(factor) * guided);
}

}  // namespace lpo::inline LPO_ABI
