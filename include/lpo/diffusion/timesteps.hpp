// SPDX-License-Identifier: MIT
// Which S of the T training timesteps a sampler visits, rounded as diffusers rounds them.
#pragma once

#include <cmath>
#include <vector>

#include <lpo/diffusion/scheduler_config.hpp>

namespace lpo::inline LPO_ABI {

/// Distance between departure and arrival of a DDIM step: T div S.
inline int timestep_stride(const SchedulerConfig& config, int steps) {
  if (steps < 1 || steps > config.num_train_timesteps)
    throw ValueError(message("[timesteps] ", steps, " steps asked of a model with ", config.num_train_timesteps,
                             " training timesteps; expected 1 to that many"));
  return config.num_train_timesteps / steps;
}

/// S departure timesteps, noisiest first. leading: stride*(S-1-i) + steps_offset; trailing: round(T - i T/S) - 1;
/// linspace: evenly from T-1 to 0. Ties round to even, as numpy's round does. Definitions: arXiv 2305.08891 table 2.
inline std::vector<int> make_timesteps(const SchedulerConfig& config, int steps) {
  const int stride = timestep_stride(config, steps), total = config.num_train_timesteps;
  std::vector<int> timesteps;
  timesteps.reserve(static_cast<std::size_t>(steps));
  for (int i = 0; i < steps; ++i) {
    switch (config.timestep_spacing) {
      case TimestepSpacing::leading:
        timesteps.push_back(stride * (steps - 1 - i) + config.steps_offset);
        break;
      case TimestepSpacing::trailing:
        timesteps.push_back(static_cast<int>(std::nearbyint(total - i * (static_cast<double>(total) / steps))) - 1);
        break;
      case TimestepSpacing::linspace:
        timesteps.push_back(static_cast<int>(
            std::nearbyint(steps == 1 ? 0.0 : (steps - 1 - i) * (static_cast<double>(total - 1) / (steps - 1)))));
        break;
    }
    if (timesteps.back() >= total)
      throw ValueError(message("[timesteps] steps_offset ", config.steps_offset, " moves timestep ", timesteps.back(),
                               " beyond the last one, ", total - 1, "; lower it or take fewer steps"));
  }
  return timesteps;
}

}  // namespace lpo::inline LPO_ABI
