// SPDX-License-Identifier: MIT
// The LPO loss as one differentiable operation on the policy's guided prediction.
#pragma once

#include <span>
#include <vector>

#include <lpo/autograd/var.hpp>
#include <lpo/diffusion/gaussian_step.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/preference/lpo_terms.hpp>

namespace lpo::inline LPO_ABI {

/// Mean over n pairs of -ln sigmoid(beta (ln r_win - ln r_lose)), a Var [1]; see LpoPairTerms.
///
/// Row i of all views [n, h, w, c] belongs to pair i; `steps[i]` is the GaussianStep it was drawn with. Win and lose
/// share x_t, so one policy prediction and one reference prediction serve a pair. Predictions may also have 2n rows,
/// those for win and then those for lose, as if each had been run for itself. With D elements per row, mu = a x_t + c
/// prediction,
///   Delta(x') = 1/(2 D sigma^2) sum (mu - mu_ref) (2 x' - mu - mu_ref)
/// is computed as this product of differences (two large means would cancel), its sum and everything after it in
/// double. Equal predictions give Delta = 0 exactly. The gradient reaches `prediction` only:
///   d L / d prediction = sum over win, lose of (d L / d Delta) c / (D sigma^2) (x' - mu).
/// `reference` and the latents are constants that must outlive backward. Results per pair go to `pairs` when it has n
/// entries, and into `metrics` when given. ShapeError, or ValueError for a step with sigma 0, a beta that is not
/// positive or a clip outside (0, 1).
template <class T, class Device, int Channels>
Var<compute_t<T>, 1, Device> lpo_loss(const Var<T, 4, Device, Channels>& prediction,
                                      std::type_identity_t<View<const T, 4, Device>> reference,
                                      std::type_identity_t<View<const T, 4, Device>> x_t,
                                      std::type_identity_t<View<const T, 4, Device>> x_win,
                                      std::type_identity_t<View<const T, 4, Device>> x_lose,
                                      std::span<const GaussianStep> steps, const LpoLossOptions& options = {},
                                      LpoMetrics* metrics = nullptr, std::span<LpoPairTerms> pairs = {}) {
  using Number = compute_t<T>;
  const index_t n = x_t.extents[0];
  const bool shared = prediction.extent(0) != 2 * n;  // by win and lose
  auto expected = x_t.extents;
  if (!shared) expected[0] = 2 * n;
  detail::expect_same("lpo_loss", "prediction", prediction.extents(), "reference", reference.extents);
  detail::expect_same("lpo_loss", "prediction", prediction.extents(), "x_t", expected);
  detail::expect_same("lpo_loss", "x_t", x_t.extents, "x_win", x_win.extents);
  detail::expect_same("lpo_loss", "x_t", x_t.extents, "x_lose", x_lose.extents);
  if (n == 0 || x_t.size() == 0 || static_cast<index_t>(steps.size()) != n)
    throw ShapeError(message("[lpo_loss] latents ", to_string(x_t.extents), " and ", static_cast<index_t>(steps.size()),
                             " steps; give one step per row, at least one row"));
  if (!pairs.empty() && static_cast<index_t>(pairs.size()) != n)
    throw ShapeError(
        message("[lpo_loss] results for ", static_cast<index_t>(pairs.size()), " pairs asked, there are ", n));
  const double width = static_cast<double>(x_t.size() / n);
  const auto side = [n, shared](auto rows, int lose) { return shared ? rows : rows.slice(0, lose * n, (lose + 1) * n); };

  auto& tape = prediction.tape();
  auto& context = tape.context();
  const auto mark = tape.mark();
  const auto loss = make_output<Number>(tape, Extents<1>{1}, prediction.requires_gradient());
  std::vector<double> slope_x, slope_y;
  for (const auto& step : steps) {
    if (!(step.sigma > 0))
      throw ValueError(message("[lpo_loss] the step at timestep ", step.timestep,
                               " has sigma 0 and so no density; train on steps with eta > 0 only"));
    slope_x.push_back(step.a);
    slope_y.push_back(step.c);
  }
  const auto a = detail::row_coefficients(context, tape.template allocate<Number>(n), slope_x);  // [n, 1, 1, 1]
  const auto c = detail::row_coefficients(context, tape.template allocate<Number>(n), slope_y);
  Number* const weight_memory = tape.template allocate<Number>(2 * n);

  std::vector<Number> sums(static_cast<std::size_t>(4 * n));
  {
    Scratch<Device> scratch(context);
    const View<Number, 4, Device> terms(scratch.template allocate<Number>(x_t.size()), x_t.extents);
    Number* const row_sums = scratch.template allocate<Number>(4 * n);
    const auto reduce = [&](int which) {
      kernel::Reduce<Device>::row_sums(context, n, x_t.size() / n, static_cast<const Number*>(terms.data),
                                       row_sums + which * n);
    };
    for (const int lose : {0, 1}) {
      const View<const T, 4, Device> y = side(prediction.view(), lose), y_ref = side(reference, lose);
      const auto& next = lose ? x_lose : x_win;
      evaluate(&context, terms,
               bcast_last(c) * (y - y_ref) * (2 * (next - bcast_last(a) * x_t) - bcast_last(c) * (y + y_ref)));
      reduce(2 * lose);
      evaluate(&context, terms, square(next - bcast_last(a) * x_t - bcast_last(c) * y_ref));
      reduce(2 * lose + 1);
    }
    context.copy_to_host(sums.data(), row_sums, sums.size() * sizeof(Number));
  }

  std::vector<double> weights(static_cast<std::size_t>(2 * n));
  double total = 0;
  for (index_t i = 0; i < n; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const auto sum = [&](int which) { return static_cast<double>(sums[static_cast<std::size_t>(which * n + i)]); };
    const double sigma = steps[at].sigma, scale = 1 / (2 * width * sigma * sigma);
    LpoPairTerms terms = lpo_pair_terms(scale * sum(0), scale * sum(2), options);
    terms.reference_log_density_win = gaussian_log_density(sum(1) / width, sigma);
    terms.reference_log_density_lose = gaussian_log_density(sum(3) / width, sigma);
    terms.log_density_win = terms.reference_log_density_win + terms.delta_win;
    terms.log_density_lose = terms.reference_log_density_lose + terms.delta_lose;
    total += terms.loss;
    const double chain = steps[at].c * 2 * scale / static_cast<double>(n);
    weights[at] = terms.gradient_win * chain;
    weights[static_cast<std::size_t>(n + i)] = terms.gradient_lose * chain;
    if (metrics != nullptr) metrics->add(terms);
    if (!pairs.empty()) pairs[at] = terms;
  }
  const Number mean = static_cast<Number>(total / static_cast<double>(n));
  context.copy_from_host(loss.data(), &mean, sizeof(Number));
  if (!loss.requires_gradient()) return loss;

  const std::span<const double> all(weights);
  const auto win = detail::row_coefficients(context, weight_memory, all.first(static_cast<std::size_t>(n)));
  const auto lose = detail::row_coefficients(context, weight_memory + n, all.last(static_cast<std::size_t>(n)));
  tape.push(mark, loss.slot(), [=](Tape<Device>& t) {
    const auto target = gradient_target(prediction);
    if (!target) return;
    const View<T, 4, Device> all_rows(target.data, prediction.extents(), prediction.view().strides);
    const View<const Number, 4, Device> outer(output_gradient(loss), Extents<4>{1, 1, 1, 1});
    const auto add = [&](const View<T, 4, Device>& into, auto gradient) {
      if (target.accumulate)
        evaluate(&t.context(), into, into + std::move(gradient));
      else
        evaluate(&t.context(), into, std::move(gradient));
    };
    const auto mean_of = [&](const auto& rows) { return bcast_last(a) * x_t + bcast_last(c) * rows; };
    const auto y = prediction.view();
    if (shared)
      return add(all_rows, bcast_last(outer) * (bcast_last(win) * (x_win - mean_of(y)) +
                                                bcast_last(lose) * (x_lose - mean_of(y))));
    for (const int which : {0, 1})
      add(side(all_rows, which), bcast_last(outer) * (bcast_last(which ? lose : win) *
                                                      ((which ? x_lose : x_win) - mean_of(side(y, which)))));
  });
  return loss;
}

}  // namespace lpo::inline LPO_ABI
