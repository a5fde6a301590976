// SPDX-License-Identifier: MIT
// The DDIM step with eta: eta 0 is deterministic, eta 1 is the DDPM posterior over the chosen timesteps.
#pragma once

#include <algorithm>
#include <vector>

#include <lpo/diffusion/gaussian_step.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/diffusion/prediction.hpp>
#include <lpo/diffusion/timesteps.hpp>

namespace lpo::inline LPO_ABI {

/// Where a step that would arrive below timestep 0 goes. `clamp` arrives at 0, so that sigma stays positive and the
/// step has a log-probability; `final_alpha` takes the schedule's final_alpha_bar (diffusers; the same numbers unless
/// set_alpha_to_one).
enum class LastArrival { clamp, final_alpha };

/// DDIM between two noise levels, arXiv 2010.02502 eq. 12 and 16:
/// sigma^2 = eta^2 (1 - abar')/(1 - abar) (1 - abar/abar'),  mu = sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) eps.
/// With x_0 and eps linear in (x_t, output), mu = a x_t + c output; for epsilon prediction a = sqrt(abar'/abar) and
/// c = sqrt(1 - abar' - sigma^2) - sqrt(abar' (1 - abar)/abar).
inline GaussianStep ddim_step_between(PredictionType type, double alpha_bar, double alpha_bar_arrival, double eta) {
  const double variance =
      std::max(0.0, (1 - alpha_bar_arrival) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_arrival)) * eta * eta;
  const double direction = std::sqrt(std::max(0.0, 1 - alpha_bar_arrival - variance));
  const double signal = std::sqrt(alpha_bar_arrival);
  const auto clean = clean_coefficients(type, alpha_bar);
  const auto noise = epsilon_coefficients(type, alpha_bar);
  GaussianStep step;
  step.a = signal * clean.latent + direction * noise.latent;
  step.c = signal * clean.output + direction * noise.output;
  step.sigma = std::sqrt(variance);
  return step;
}

/// The step from `timestep` to `timestep - stride`.
inline GaussianStep ddim_step(const NoiseSchedule& schedule, int timestep, int stride, double eta,
                              LastArrival last = LastArrival::clamp) {
  if (!(eta >= 0 && eta <= 1)) throw ValueError(message("[ddim_step] eta is ", eta, ", expected 0 to 1"));
  const int arrival = std::clamp(timestep - stride, 0, schedule.train_timesteps() - 1);
  const bool below = timestep - stride < 0 && last == LastArrival::final_alpha;
  const double then = below ? schedule.final_alpha_bar() : schedule.alpha_bar(arrival);
  GaussianStep step = ddim_step_between(schedule.config().prediction_type, schedule.alpha_bar(timestep), then, eta);
  step.timestep = timestep;
  step.arrival = arrival;
  return step;
}

/// All S steps of a DDIM chain, noisiest first.
inline std::vector<GaussianStep> ddim_steps(const NoiseSchedule& schedule, int steps, double eta,
                                            LastArrival last = LastArrival::clamp) {
  const int stride = timestep_stride(schedule.config(), steps);
  std::vector<GaussianStep> chain;
  for (const int timestep : make_timesteps(schedule.config(), steps))
    chain.push_back(ddim_step(schedule, timestep, stride, eta, last));
  return chain;
}

}  // namespace lpo::inline LPO_ABI
