// SPDX-License-Identifier: MIT
// The Diffusion-DPO loss (arXiv 2311.12908): preferences between finished images, compared by denoising error.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include <lpo/autograd/reduce.hpp>

namespace lpo::inline LPO_ABI {

/// Means over the pairs that were added.
struct DiffusionDpoMetrics {
  index_t pairs = 0;
  double loss = 0;
  double implicit_accuracy = 0;  ///< fraction of pairs whose argument of the sigmoid is positive
  double margin = 0;             ///< mean argument: how much further than the reference the policy tells the images apart

  void add(double argument) {
    const double weight = 1 / static_cast<double>(++pairs);
    loss += (std::max(0.0, -argument) + std::log1p(std::exp(-std::fabs(argument))) - loss) * weight;
    margin += (argument - margin) * weight;
    implicit_accuracy += ((argument > 0 ? 1 : 0) - implicit_accuracy) * weight;
  }
  /// Adds the pairs that another one saw.
  void merge(const DiffusionDpoMetrics& other) {
    if (other.pairs == 0) return;
    pairs += other.pairs;
    const double share = static_cast<double>(other.pairs) / static_cast<double>(pairs);
    for (const auto value : {&DiffusionDpoMetrics::loss, &DiffusionDpoMetrics::implicit_accuracy, &DiffusionDpoMetrics::margin})
      this->*value += (other.*value - this->*value) * share;
  }
};

/// Mean over n pairs of -ln sigmoid(-(beta/2) [(m_w - m_l) - (r_w - r_l)]), a Var [1]; m and r are the mean squared
/// errors of the policy's and the reference's prediction. All operands [2n, h, w, c], rows: n preferred images, then
/// the n rejected ones in the same order; `target` is what should have been predicted (for epsilon prediction the
/// noise, which a pair shares, as it shares the timestep). `reference` and `target` are constants that must outlive
/// backward. Asking for `metrics` waits for the device.
template <class T, class Device, int Channels>
Var<T, 1, Device> diffusion_dpo_loss(const Var<T, 4, Device, Channels>& prediction,
                                     std::type_identity_t<View<const T, 4, Device>> reference,
                                     std::type_identity_t<View<const T, 4, Device>> target, double beta = 5000,
                                     DiffusionDpoMetrics* metrics = nullptr) {
  static_assert(std::is_same_v<T, compute_t<T>>,
                "lpo diffusion_dpo_loss: predictions must be float or double; convert 16-bit storage first");
  detail::expect_same("diffusion_dpo_loss", "prediction", prediction.extents(), "reference", reference.extents);
  detail::expect_same("diffusion_dpo_loss", "prediction", prediction.extents(), "target", target.extents);
  const index_t rows = prediction.extent(0);
  if (rows == 0 || rows % 2 != 0 || prediction.size() == 0)
    throw ShapeError(message("[diffusion_dpo_loss] predictions ", to_string(prediction.extents()),
                             "; expected n preferred rows, then n rejected rows"));
  const index_t n = rows / 2, width = prediction.size() / rows;
  auto& tape = prediction.tape();
  auto& context = tape.context();
  const View<T, 1, Device> fixed(tape.template allocate<T>(rows), Extents<1>{rows});
  {
    Scratch<Device> scratch(context);
    const View<T, 4, Device> squares(scratch.template allocate<T>(prediction.size()), prediction.extents());
    evaluate(&context, squares, square(reference - target));
    kernel::Reduce<Device>::row_sums(context, rows, width, static_cast<const T*>(squares.data), fixed.data);
  }
  const Var<T, 4, Device> squares = square(prediction - target);
  const auto errors = row_sums(squares.reshape(Extents<2>{rows, width}));
  const auto win = errors.slice(0, 0, n), lose = errors.slice(0, n, rows);
  const Var<T, 1, Device> negated = (beta / 2 / static_cast<double>(width)) *
                                    ((win - lose) - (fixed.slice(0, 0, n) - fixed.slice(0, n, rows)));
  if (metrics != nullptr) {
    std::vector<T> host(static_cast<std::size_t>(n));
    context.copy_to_host(host.data(), negated.data(), host.size() * sizeof(T));
    for (const T value : host) metrics->add(-static_cast<double>(value));
  }
  const Var<T, 1, Device> losses = softplus(negated);
  return mean(losses);
}

}  // namespace lpo::inline LPO_ABI
