// SPDX-License-Identifier: MIT
// The noise levels sigma = sqrt((1 - abar)/abar) that Euler and DPM++ samplers visit, as diffusers chooses them.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/diffusion/timesteps.hpp>

namespace lpo::inline LPO_ABI {

/// S departures, noisiest first: what the network is told and the noise level there. `sigmas` has one more entry, the
/// level where the last step arrives.
struct SigmaGrid {
  std::vector<double> timesteps;
  std::vector<double> sigmas;
};

/// sigma of every training timestep. With zero terminal SNR the last one would be infinite; abar is 2^-24 there
/// instead.
inline std::vector<double> training_sigmas(const NoiseSchedule& schedule) {
  std::vector<double> sigmas;
  for (const double alpha_bar : schedule.alpha_bars()) sigmas.push_back(std::sqrt((1 - alpha_bar) / alpha_bar));
  if (schedule.config().rescale_betas_zero_snr) sigmas.back() = std::sqrt(0x1p24 - 1);
  return sigmas;
}

/// `count` levels from `largest` to `smallest`, evenly spaced in sigma^(1/7); arXiv 2206.00364 eq. 5 with rho = 7.
inline std::vector<double> karras_sigmas(double largest, double smallest, int count) {
  const double high = std::pow(largest, 1.0 / 7), low = std::pow(smallest, 1.0 / 7);
  std::vector<double> sigmas;
  for (int i = 0; i < count; ++i)
    sigmas.push_back(std::pow(high + (count > 1 ? i / (count - 1.0) : 0.0) * (low - high), 7));
  return sigmas;
}

namespace detail {

/// sigma at a timestep with a fraction, linear between training timesteps.
inline double sigma_at(const std::vector<double>& sigmas, double timestep) {
  const auto below = std::min(static_cast<std::size_t>(timestep), sigmas.size() - 1);
  const double part = timestep - static_cast<double>(below);
  return part > 0 ? sigmas[below] + part * (sigmas[below + 1] - sigmas[below]) : sigmas[below];
}

/// The timestep with this sigma, log sigma being linear between training timesteps; limited to the first and the last.
inline double timestep_at(const std::vector<double>& sigmas, double sigma) {
  if (sigmas.size() < 2) return 0;
  const auto above = std::upper_bound(sigmas.begin() + 1, sigmas.end() - 1, sigma);
  const double high = std::log(*above), low = std::log(*(above - 1));
  const double part = std::clamp((std::log(sigma) - low) / (high - low), 0.0, 1.0);
  return static_cast<double>(above - 1 - sigmas.begin()) + part;
}

inline void append_final_sigma(const SchedulerConfig& config, const std::vector<double>& training, SigmaGrid& grid) {
  grid.sigmas.push_back(config.final_sigmas_type == FinalSigmasType::zero ? 0 : training.front());
}

}  // namespace detail

/// EulerDiscreteScheduler's levels. linspace visits fractions of timesteps; Karras levels lie between the largest and
/// the smallest sigma of the spacing.
inline SigmaGrid euler_sigmas(const NoiseSchedule& schedule, int steps, bool karras) {
  const SchedulerConfig& config = schedule.config();
  const std::vector<double> training = training_sigmas(schedule);
  SigmaGrid grid;
  for (const int timestep : make_timesteps(config, steps)) grid.timesteps.push_back(timestep);
  if (config.timestep_spacing == TimestepSpacing::linspace)
    for (int i = 0; i < steps; ++i)
      grid.timesteps[static_cast<std::size_t>(i)] =
          steps == 1 ? 0.0 : (steps - 1 - i) * ((config.num_train_timesteps - 1.0) / (steps - 1));
  for (const double timestep : grid.timesteps) grid.sigmas.push_back(detail::sigma_at(training, timestep));
  if (karras) {
    grid.sigmas = karras_sigmas(grid.sigmas.front(), grid.sigmas.back(), steps);
    std::transform(grid.sigmas.begin(), grid.sigmas.end(), grid.timesteps.begin(),
                   [&](double sigma) { return detail::timestep_at(training, sigma); });
  }
  detail::append_final_sigma(config, training, grid);
  return grid;
}

/// DPMSolverMultistepScheduler's levels. leading and linspace space S + 1 timesteps and leave the last one out; Karras
/// levels span all of training, and their timesteps are rounded (cut off with the cosine schedule) to whole ones.
inline SigmaGrid dpm_sigmas(const NoiseSchedule& schedule, int steps, bool karras) {
  const SchedulerConfig& config = schedule.config();
  const std::vector<double> training = training_sigmas(schedule);
  SigmaGrid grid;
  timestep_stride(config, steps);  // checks the number of steps
  if (karras) {
    grid.sigmas = karras_sigmas(training.back(), training.front(), steps);
    const bool cosine = config.beta_schedule == BetaSchedule::squaredcos_cap_v2;
    for (const double sigma : grid.sigmas) {
      const double timestep = detail::timestep_at(training, sigma);
      grid.timesteps.push_back(cosine ? std::floor(timestep) : std::nearbyint(timestep));
    }
  } else {
    const bool trailing = config.timestep_spacing == TimestepSpacing::trailing;
    if (!trailing && steps == config.num_train_timesteps)
      throw ValueError(message("[timesteps] ", steps, " steps asked of DPM++ over ", steps, " training timesteps, which ",
                               name_of(config.timestep_spacing), " spacing parts into one step more than are taken; expected "
                               "at most ", steps - 1));
    auto timesteps = make_timesteps(config, trailing ? steps : steps + 1);
    timesteps.resize(static_cast<std::size_t>(steps));
    for (const int timestep : timesteps) {
      grid.timesteps.push_back(timestep);
      grid.sigmas.push_back(training[static_cast<std::size_t>(timestep)]);
    }
  }
  detail::append_final_sigma(config, training, grid);
  return grid;
}

}  // namespace lpo::inline LPO_ABI
