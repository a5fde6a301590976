// SPDX-License-Identifier: MIT
// GaussianStep: one denoising transition N(a x_t + c prediction, sigma^2 I), whatever sampler it comes from.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include <lpo/kernel/reduce.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {

/// The distribution of the next latent given x_t: mean a x_t + c y, where y is the (guided) network output, and
/// standard deviation sigma. DDIM, DDPM and flow samplers differ in these numbers only; they are double and never
/// stored in less.
struct GaussianStep {
  int timestep = 0;  ///< departure, what the network is told
  int arrival = 0;   ///< noise level of the next latent
  double a = 1;
  double c = 0;
  double sigma = 0;

  /// mu, as a fused expression.
  template <Operand X, Operand Y>
  auto mean(X&& latents, Y&& prediction) const {
    return a * std::forward<X>(latents) + c * std::forward<Y>(prediction);
  }

  /// mu + sigma z, as a fused expression; z may have more leading axes than the latents (candidates).
  template <Operand X, Operand Y, Operand Z>
  auto next(X&& latents, Y&& prediction, Z&& noise) const {
    return mean(std::forward<X>(latents), std::forward<Y>(prediction)) + sigma * std::forward<Z>(noise);
  }
};

/// ln N(x; mean, sigma^2) of one element at squared distance `square` from the mean.
inline double gaussian_log_density(double square, double sigma) {
  return -square / (2 * sigma * sigma) - std::log(sigma) - 0.91893853320467274178;  // ln sqrt(2 pi)
}

namespace detail {

/// Sum of every row of a dense buffer, [rows, width] -> host doubles.
template <class T, class Device>
std::vector<double> host_row_sums(Context<Device>& context, const T* values, index_t rows, index_t width) {
  Scratch<Device> scratch(context);
  T* sums = scratch.template allocate<T>(rows);
  kernel::Reduce<Device>::row_sums(context, rows, width, values, sums);
  std::vector<T> host(static_cast<std::size_t>(rows));
  context.copy_to_host(host.data(), sums, host.size() * sizeof(T));
  return {host.begin(), host.end()};
}

}  // namespace detail

/// Log-probability of `next` under the step, as the MEAN over the elements of each row (arXiv 2502.01051's convention):
/// mean_i [-(x'_i - mu_i)^2 / (2 sigma^2) - ln sigma - ln sqrt(2 pi)]. Views [n, h, w, c]; returns n values.
/// ValueError for a deterministic step. Name the element type: `log_probability<float>(context, step, next, x, eps)`.
template <class T, class Device>
std::vector<double> log_probability(Context<Device>& context, const GaussianStep& step,
                                    std::type_identity_t<View<const T, 4, Device>> next,
                                    std::type_identity_t<View<const T, 4, Device>> latents,
                                    std::type_identity_t<View<const T, 4, Device>> prediction) {
  if (!(step.sigma > 0))
    throw ValueError(message("[log_probability] the step at timestep ", step.timestep,
                             " is deterministic (sigma 0) and has no density; sample with eta > 0"));
  detail::expect_same("log_probability", "next", next.extents, "latents", latents.extents);
  detail::expect_same("log_probability", "next", next.extents, "prediction", prediction.extents);
  using Number = compute_t<T>;
  const index_t rows = next.extent(0), width = rows == 0 ? 0 : next.size() / rows;
  Scratch<Device> scratch(context);
  View<Number, 4, Device> squares(scratch.template allocate<Number>(next.size()), next.extents);
  evaluate(&context, squares, square(next - step.mean(latents, prediction)));
  auto values = detail::host_row_sums(context, squares.data, rows, width);
  for (double& value : values) value = gaussian_log_density(value / static_cast<double>(width), step.sigma);
  return values;
}

}  // namespace lpo::inline LPO_ABI
