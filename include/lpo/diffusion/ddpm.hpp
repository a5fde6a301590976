// SPDX-License-Identifier: MIT
// The DDPM ancestral step over any subset of timesteps, with the posterior variance (diffusers' fixed_small).
#pragma once

#include <algorithm>
#include <vector>

#include <lpo/diffusion/gaussian_step.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/diffusion/prediction.hpp>
#include <lpo/diffusion/timesteps.hpp>

namespace lpo::inline LPO_ABI {

/// q(x_p | x_t, x_0) with the estimated x_0, arXiv 2006.11239 eq. 6 and 7; `arrival` -1 means the clean sample (abar
/// 1). No noise is added at timestep 0.
inline GaussianStep ddpm_step(const NoiseSchedule& schedule, int timestep, int arrival) {
  if (arrival >= timestep)
    throw ValueError(message("[ddpm_step] arrival ", arrival, " must lie below the departure ", timestep));
  const double now = schedule.alpha_bar(timestep), then = arrival < 0 ? 1.0 : schedule.alpha_bar(arrival);
  const double alpha = now / then, beta = 1 - alpha;
  const double toward_clean = std::sqrt(then) * beta / (1 - now);
  const double keep = std::sqrt(alpha) * (1 - then) / (1 - now);
  const auto clean = clean_coefficients(schedule.config().prediction_type, now);
  GaussianStep step;
  step.timestep = timestep;
  step.arrival = std::max(arrival, 0);
  step.a = toward_clean * clean.latent + keep;
  step.c = toward_clean * clean.output;
  // diffusers keeps the variance of the last step at 1e-20 instead of 0; the same floor here.
  step.sigma = timestep == 0 ? 0.0 : std::sqrt(std::max((1 - then) / (1 - now) * beta, 1e-20));
  return step;
}

/// All S steps; each arrives where the next departs, the last one at the clean sample.
inline std::vector<GaussianStep> ddpm_steps(const NoiseSchedule& schedule, int steps) {
  const auto timesteps = make_timesteps(schedule.config(), steps);
  std::vector<GaussianStep> chain;
  for (std::size_t i = 0; i < timesteps.size(); ++i)
    chain.push_back(ddpm_step(schedule, timesteps[i], i + 1 < timesteps.size() ? timesteps[i + 1] : -1));
  return chain;
}

}  // namespace lpo::inline LPO_ABI
