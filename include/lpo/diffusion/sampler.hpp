// SPDX-License-Identifier: MIT
// Sampler: the steps of DDIM, DDPM, Euler, Euler ancestral, DPM++ 2M or PNDM, chosen at run time.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

#include <lpo/diffusion/ddim.hpp>
#include <lpo/diffusion/ddpm.hpp>
#include <lpo/diffusion/sigmas.hpp>

namespace lpo::inline LPO_ABI {

/// One step of any sampler. The network's output y becomes m_0 = output(x, y); m_1, m_2, ... are those of earlier
/// steps, the latest first. Then x' = a x + sum_k c[k] m_k + sigma z over the first `terms` of them.
struct SamplerStep {
  double timestep = 0;  ///< what the network is told; Euler has fractions
  double a = 1;
  std::array<double, 4> c{};
  double sigma = 0;  ///< 0 where terms > 1
  PredictionCoefficients output{0, 1};
  int terms = 1;
  bool remembered = true;  ///< later steps count this one's m_0
};

/// A chain of S steps (PNDM: S + 1) with diffusers' coefficients, all in double.
///
/// Latents have variance 1 at every step of every sampler, x = sqrt(abar) x_0 + sqrt(1 - abar) eps, and that is what
/// the network sees. diffusers' Euler schedulers keep x sqrt(1 + sigma^2) and scale the network's input down each time;
/// the two differ by that factor in between and agree at the end. Written so, an Euler step is DDIM's between two
/// sigmas, and an ancestral one is DDIM's with eta 1.
class Sampler {
 public:
  /// `eta` is for DDIM (0: deterministic). ValueError where diffusers has no such sampler: PNDM with zero terminal SNR
  /// or that predicts clean samples, noise prediction from a latent without signal, too many steps.
  Sampler(const NoiseSchedule& schedule, SamplerKind kind, int steps, double eta = 0);

  /// A chain that was made elsewhere, for example with `ddim_steps`.
  explicit Sampler(std::span<const GaussianStep> chain) { append(chain); }

  std::span<const SamplerStep> steps() const& { return steps_; }
  std::span<const SamplerStep> steps() const&& = delete;  // they would outlive the sampler

  /// What standard normals are multiplied by to start: 1, or sigma/sqrt(1 + sigma^2) for Euler's linspace and trailing
  /// spacings (diffusers' init_noise_sigma over sqrt(1 + sigma^2)).
  double initial_scale() const { return initial_scale_; }

  /// How many network outputs a step may need, its own included: 1 to 4.
  int outputs() const {
    int most = 1;
    for (const SamplerStep& step : steps_) most = std::max(most, step.terms);
    return most;
  }

 private:
  void append(const GaussianStep& gaussian, double timestep) {
    SamplerStep step;
    step.timestep = timestep;
    step.a = gaussian.a;
    step.c[0] = gaussian.c;
    step.sigma = gaussian.sigma;
    steps_.push_back(step);
  }
  void append(std::span<const GaussianStep> chain) {
    for (const GaussianStep& step : chain) append(step, step.timestep);
  }

  void make_euler(const NoiseSchedule& schedule, int steps, bool ancestral);
  void make_dpmpp_2m(const NoiseSchedule& schedule, int steps, bool karras);
  void make_pndm(const NoiseSchedule& schedule, int steps);

  std::vector<SamplerStep> steps_;
  double initial_scale_ = 1;
};

inline Sampler::Sampler(const NoiseSchedule& schedule, SamplerKind kind, int steps, double eta) {
  const SchedulerConfig& config = schedule.config();
  switch (kind) {
    case SamplerKind::ddim:
      append(ddim_steps(schedule, steps, eta, LastArrival::final_alpha));
      break;
    case SamplerKind::ddpm:
      append(ddpm_steps(schedule, steps));
      break;
    case SamplerKind::euler:
    case SamplerKind::euler_ancestral:
      make_euler(schedule, steps, kind == SamplerKind::euler_ancestral);
      break;
    case SamplerKind::dpmpp_2m:
    case SamplerKind::dpmpp_2m_karras:
      make_dpmpp_2m(schedule, steps, config.use_karras_sigmas || kind == SamplerKind::dpmpp_2m_karras);
      break;
    case SamplerKind::pndm:
      make_pndm(schedule, steps);
      break;
  }
  for (const SamplerStep& step : steps_)
    if (!std::isfinite(step.a) || !std::isfinite(step.c[0]) || !std::isfinite(step.c[1]))
      throw ValueError(message("[Sampler] ", name_of(kind), " with ", steps, " steps, ",
                               name_of(config.timestep_spacing), " spacing and ", name_of(config.prediction_type),
                               " prediction cannot step from timestep ", static_cast<int>(step.timestep),
                               "; take fewer steps, or v_prediction where the schedule has zero terminal SNR"));
}

/// Euler on dx/dsigma = (x - x_0)/sigma (arXiv 2206.00364 algorithm 2 without churn); ancestral: down to sigma_down,
/// then noise sigma_up = sigma' sqrt(1 - sigma'^2/sigma^2), sigma_down^2 + sigma_up^2 = sigma'^2.
inline void Sampler::make_euler(const NoiseSchedule& schedule, int steps, bool ancestral) {
  SchedulerConfig config = schedule.config();
  if (ancestral) config.final_sigmas_type = FinalSigmasType::zero;
  const SigmaGrid grid = euler_sigmas(NoiseSchedule(config), steps, config.use_karras_sigmas && !ancestral);
  const auto alpha_bar = [&](std::size_t i) { return 1 / (1 + grid.sigmas[i] * grid.sigmas[i]); };
  for (std::size_t i = 0; i < grid.timesteps.size(); ++i)
    append(ddim_step_between(config.prediction_type, alpha_bar(i), alpha_bar(i + 1), ancestral ? 1.0 : 0.0),
           grid.timesteps[i]);
  // Where the chain ends above sigma 0, diffusers leaves its own scale on the latents.
  const double final_scale = std::sqrt(1 + grid.sigmas.back() * grid.sigmas.back());
  steps_.back().a *= final_scale;
  steps_.back().c[0] *= final_scale;
  if (config.timestep_spacing != TimestepSpacing::leading) initial_scale_ = std::sqrt(1 - alpha_bar(0));
}

/// DPM-Solver++(2M), midpoint form, arXiv 2211.01095 algorithm 2: the first-order step with m_0 replaced by
/// m_0 + h/(2 h_1) (m_0 - m_1), where m are clean estimates and h, h_1 this and the last step in log(1/sigma).
inline void Sampler::make_dpmpp_2m(const NoiseSchedule& schedule, int steps, bool karras) {
  const SchedulerConfig& config = schedule.config();
  const SigmaGrid grid = dpm_sigmas(schedule, steps, karras);
  const auto alpha_bar = [&](std::size_t i) { return 1 / (1 + grid.sigmas[i] * grid.sigmas[i]); };
  const bool first_order_end = config.euler_at_final || (config.lower_order_final && steps < 15) ||
                               config.final_sigmas_type == FinalSigmasType::zero;
  for (std::size_t i = 0; i < grid.timesteps.size(); ++i) {
    append(ddim_step_between(PredictionType::sample, alpha_bar(i), alpha_bar(i + 1), 0.0), grid.timesteps[i]);
    SamplerStep& step = steps_.back();
    step.output = clean_coefficients(config.prediction_type, alpha_bar(i));
    if (i == 0 || (first_order_end && i + 1 == grid.timesteps.size())) continue;
    const double last = std::log(grid.sigmas[i - 1] / grid.sigmas[i]);
    const double extrapolation = std::log(grid.sigmas[i] / grid.sigmas[i + 1]) / last / 2;
    step.terms = 2;
    step.c[1] = -extrapolation * step.c[0];
    step.c[0] *= 1 + extrapolation;
  }
}

/// Pseudo linear multistep, arXiv 2202.09778 eq. 12 with the DDIM transfer of eq. 11. The second timestep is visited
/// twice: the first step is redone from the start with the mean of two outputs, then come orders 2, 3 and 4.
inline void Sampler::make_pndm(const NoiseSchedule& schedule, int steps) {
  const SchedulerConfig& config = schedule.config();
  if (!config.skip_prk_steps)
    throw ValueError(
        "[Sampler] pndm starts without Runge-Kutta steps, as Stable Diffusion does; set skip_prk_steps to true");
  if (config.prediction_type == PredictionType::sample)
    throw ValueError("[Sampler] pndm combines epsilon or v_prediction, not sample; choose another sampler");
  if (config.rescale_betas_zero_snr)
    throw ValueError("[Sampler] pndm has no zero terminal SNR (rescale_betas_zero_snr); choose another sampler");
  constexpr auto last_arrival = LastArrival::final_alpha;
  const int stride = timestep_stride(config, steps);
  const auto timesteps = make_timesteps(config, steps);
  append(ddim_step(schedule, timesteps[0], stride, 0.0, last_arrival), timesteps[0]);
  if (steps == 1) return;

  const GaussianStep redone = ddim_step(schedule, timesteps[1] + stride, stride, 0.0, last_arrival);
  const double a = steps_[0].a, c = steps_[0].c[0];  // the start is (x - c m_1)/a
  append(redone, timesteps[1]);
  steps_[1].a = redone.a / a;
  steps_[1].c = {redone.c / 2, redone.c / 2 - redone.a / a * c};
  steps_[1].terms = 2;
  steps_[1].remembered = false;

  constexpr std::array<std::array<double, 4>, 3> adams_bashforth = {
      {{3.0 / 2, -1.0 / 2}, {23.0 / 12, -16.0 / 12, 5.0 / 12}, {55.0 / 24, -59.0 / 24, 37.0 / 24, -9.0 / 24}}};
  for (std::size_t i = 1; i < timesteps.size(); ++i) {
    append(ddim_step(schedule, timesteps[i], stride, 0.0, last_arrival), timesteps[i]);
    SamplerStep& step = steps_.back();
    const std::size_t order = std::min<std::size_t>(i + 1, 4);
    const double transfer = step.c[0];
    for (std::size_t k = 0; k < order; ++k) step.c[k] = transfer * adams_bashforth[order - 2][k];
    step.terms = static_cast<int>(order);
  }
}

}  // namespace lpo::inline LPO_ABI
