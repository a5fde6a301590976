// SPDX-License-Identifier: MIT
// Step-level GRPO: all K candidates of a step are trained, weighted by their standardised score, near the reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <type_traits>
#include <vector>

#include <lpo/autograd/reduce.hpp>
#include <lpo/diffusion/gaussian_step.hpp>
#include <lpo/diffusion/noise_schedule.hpp>

namespace lpo::inline LPO_ABI {

/// Divide by K or by K - 1 in the standard deviation of a group.
enum class GroupDeviation { population, sample };

/// A = (score - mean) / std over the K candidates of each prompt; row k*B + b is candidate k of prompt b. Zero where
/// all scores of a group are equal.
inline std::vector<double> group_advantages(std::span<const float> scores, int candidates,
                                            GroupDeviation deviation = GroupDeviation::population) {
  if (candidates < 2 || static_cast<index_t>(scores.size()) % candidates != 0)
    throw ValueError(message("[group_advantages] ", static_cast<index_t>(scores.size()), " scores in groups of ",
                             candidates, "; expected K*B scores with K of at least 2"));
  const std::size_t group = static_cast<std::size_t>(candidates), prompts = scores.size() / group;
  std::vector<double> advantages(scores.size());
  for (std::size_t b = 0; b < prompts; ++b) {
    double mean = 0, squares = 0;
    bool differ = false;  // of equal scores rounding can make a mean beside them
    for (std::size_t k = 0; k < group; ++k) {
      mean += static_cast<double>(scores[k * prompts + b]) / candidates;
      differ = differ || scores[k * prompts + b] != scores[b];
    }
    for (std::size_t k = 0; k < group; ++k) squares += std::pow(static_cast<double>(scores[k * prompts + b]) - mean, 2);
    const double spread = std::sqrt(squares / (deviation == GroupDeviation::population ? candidates : candidates - 1));
    for (std::size_t k = 0; k < group; ++k)
      advantages[k * prompts + b] = differ && spread > 0 ? (static_cast<double>(scores[k * prompts + b]) - mean) / spread : 0.0;
  }
  return advantages;
}

struct GrpoOptions {
  double beta = 0.1;  ///< weight of the divergence from the reference
  double clip = 0.1;  ///< ratios are limited to [1 - clip, 1 + clip] where that lowers the objective
};

/// Means over the groups that were added.
struct GrpoMetrics {
  index_t groups = 0;
  double loss = 0;
  double ratio = 0;       ///< before clipping
  double clipped = 0;     ///< share of candidates whose ratio lies outside the limits
  double gain = 0;        ///< min(rho A, clip(rho) A)
  double divergence = 0;  ///< KL from the reference

  /// One group: its K ratios and advantages (`stride` apart) and its divergence.
  template <class T>
  void add(const T* ratios, const double* advantages, index_t candidates, index_t stride, double kl,
           const GrpoOptions& options) {
    double sum = 0, outside = 0, gains = 0;
    for (index_t k = 0; k < candidates; ++k) {
      const double r = static_cast<double>(ratios[k * stride]), a = advantages[k * stride];
      const double limited = std::clamp(r, 1 - options.clip, 1 + options.clip);
      sum += r;
      outside += r == limited ? 0 : 1;
      gains += std::min(r * a, limited * a);
    }
    const double share = 1 / static_cast<double>(candidates), weight = 1 / static_cast<double>(++groups);
    const auto mean = [weight](double& total, double value) { total += (value - total) * weight; };
    mean(ratio, sum * share);
    mean(clipped, outside * share);
    mean(gain, gains * share);
    mean(divergence, kl);
    mean(loss, options.beta * kl - gains * share);
  }
  /// Adds the groups that another one saw.
  void merge(const GrpoMetrics& other) {
    if (other.groups == 0) return;
    groups += other.groups;
    const double share = static_cast<double>(other.groups) / static_cast<double>(groups);
    using M = GrpoMetrics;
    for (const auto value : {&M::loss, &M::ratio, &M::clipped, &M::gain, &M::divergence})
      this->*value += (other.*value - this->*value) * share;
  }
};

/// Mean over all K*B candidates of -[min(rho A, clip(rho) A) - beta KL], a Var [1], with the mean over elements in
/// ln rho = logp_policy - logp_old and in KL = (mu - mu_ref)^2 / (2 sigma^2).
///
/// Candidates of a prompt share their parent, so the policy runs once per prompt: `prediction`, `old`, `reference` and
/// `x_t` are [b, h, w, c], `candidates` [k, b, h, w, c], `steps` one per prompt, `advantages` of row k*B + b. Views are
/// constants that must outlive backward. Asking for `metrics` waits for the device.
template <class T, class Device, int Channels>
Var<T, 1, Device> grpo_loss(const Var<T, 4, Device, Channels>& prediction,
                            std::type_identity_t<View<const T, 4, Device>> old,
                            std::type_identity_t<View<const T, 4, Device>> reference,
                            std::type_identity_t<View<const T, 4, Device>> x_t,
                            std::type_identity_t<View<const T, 5, Device>> candidates,
                            std::span<const GaussianStep> steps, std::span<const double> advantages,
                            const GrpoOptions& options = {}, GrpoMetrics* metrics = nullptr) {
  static_assert(std::is_same_v<T, compute_t<T>>,
                "lpo grpo_loss: predictions must be float or double; convert 16-bit storage first");
  detail::expect_same("grpo_loss", "prediction", prediction.extents(), "old", old.extents);
  detail::expect_same("grpo_loss", "prediction", prediction.extents(), "reference", reference.extents);
  detail::expect_same("grpo_loss", "prediction", prediction.extents(), "x_t", x_t.extents);
  const index_t k = candidates.extent(0), b = prediction.extent(0);
  if (prediction.size() == 0 || candidates.size() != k * prediction.size() || static_cast<index_t>(steps.size()) != b ||
      static_cast<index_t>(advantages.size()) != k * b)
    throw ShapeError(message("[grpo_loss] predictions ", to_string(prediction.extents()), ", candidates ",
                             to_string(candidates.extents), ", ", static_cast<index_t>(steps.size()), " steps, ",
                             static_cast<index_t>(advantages.size()), " advantages do not belong together"));
  const index_t width = prediction.size() / b;
  auto& tape = prediction.tape();
  auto& context = tape.context();
  std::vector<double> slope_x, slope_y, inverse;
  for (const auto& step : steps) {
    if (!(step.sigma > 0))
      throw ValueError(message("[grpo_loss] the step at timestep ", step.timestep, " has sigma 0 and no density"));
    slope_x.push_back(step.a);
    slope_y.push_back(step.c);
    inverse.push_back(1 / (2 * step.sigma * step.sigma * static_cast<double>(width)));
  }
  const auto a = detail::row_coefficients(context, tape.template allocate<T>(b), slope_x);  // [b, 1, 1, 1]
  const auto c = detail::row_coefficients(context, tape.template allocate<T>(b), slope_y);
  const auto scale = detail::row_coefficients(context, tape.template allocate<T>(b), inverse).reshape(Extents<1>{b});
  const auto advantage =
      detail::row_coefficients(context, tape.template allocate<T>(k * b), advantages).reshape(Extents<2>{k, b});

  // Differences of squares as products, as in lpo_loss: equal predictions give a ratio of exactly 1.
  const Var<T, 5, Device> products =
      bcast_last(c) * (prediction - old) *
      (2 * (candidates - bcast_last(a) * x_t) - bcast_last(c) * (prediction + old));  // [k, b, h, w, c]
  const auto sums = row_sums(products.reshape(Extents<2>{k * b, width})).reshape(Extents<2>{k, b});
  const Var<T, 2, Device> ratio = exp(sums * scale);
  const Var<T, 2, Device> gain =
      minimum(ratio * advantage, clamp(ratio, 1 - options.clip, 1 + options.clip) * advantage);
  const Var<T, 4, Device> moved = square(bcast_last(c) * (prediction - reference));
  const Var<T, 1, Device> divergence = row_sums(moved.reshape(Extents<2>{b, width})) * scale;
  if (metrics != nullptr) {
    std::vector<T> ratios(static_cast<std::size_t>(k * b)), kl(static_cast<std::size_t>(b));
    context.copy_to_host(ratios.data(), ratio.data(), ratios.size() * sizeof(T));
    context.copy_to_host(kl.data(), divergence.data(), kl.size() * sizeof(T));
    for (index_t i = 0; i < b; ++i)
      metrics->add(ratios.data() + i, advantages.data() + i, k, b, static_cast<double>(kl[static_cast<std::size_t>(i)]),
                   options);
  }
  return options.beta * mean(divergence) - mean(gain);
}

}  // namespace lpo::inline LPO_ABI
