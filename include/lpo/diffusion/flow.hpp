// SPDX-License-Identifier: MIT
// Stochastic steps of rectified flow (x_s = (1-s) x_0 + s eps, output v = eps - x_0) as GaussianSteps.
#pragma once

#include <algorithm>
#include <cmath>

#include <lpo/diffusion/gaussian_step.hpp>

namespace lpo::inline LPO_ABI {

/// DDIM carried over to flows, from noise level s to s' < s, in the schedule-free posterior form
/// sigma^2 = eta^2 s'^2 [1 - ((1-s) s' / ((1-s') s))^2]: never above s'^2, equal to DDIM's where a^2 + b^2 = 1.
/// mu = (1-s') x_0 + sqrt(s'^2 - sigma^2) eps with x_0 = x - s v, eps = x + (1-s) v. `timestep` is round(1000 s).
inline GaussianStep flow_step(double level, double level_arrival, double eta) {
  if (!(level > 0 && level <= 1 && level_arrival >= 0 && level_arrival < level))
    throw ValueError(
        message("[flow_step] noise levels ", level, " -> ", level_arrival, " must satisfy 1 >= s > s' >= 0"));
  const double a = 1 - level, b = level, a_next = 1 - level_arrival, b_next = level_arrival;
  const double ratio = a * b_next / (a_next * b);
  const double variance = eta * eta * b_next * b_next * (1 - ratio * ratio);
  const double direction = std::sqrt(std::max(0.0, b_next * b_next - variance));
  GaussianStep step;
  step.timestep = static_cast<int>(std::lround(1000 * level));
  step.arrival = static_cast<int>(std::lround(1000 * level_arrival));
  step.a = a_next + direction;
  step.c = direction * a - a_next * b;
  step.sigma = std::sqrt(variance);
  return step;
}

/// The SDE step of Flow-GRPO (arXiv 2505.05470): diffusion q = noise * sqrt(s/(1-s)), dt = s' - s,
/// mean = x (1 + q^2 dt/(2s)) + v (1 + q^2 (1-s)/(2s)) dt, sigma = q sqrt(-dt). At s = 1 the 1-s under the root is
/// taken from `first_inner_level`, the second level of the chain.
inline GaussianStep flow_sde_step(double level, double level_arrival, double first_inner_level, double noise = 0.7) {
  if (!(level > 0 && level <= 1 && level_arrival >= 0 && level_arrival < level && first_inner_level < 1))
    throw ValueError(
        message("[flow_sde_step] noise levels ", level, " -> ", level_arrival, " must satisfy 1 >= s > s' >= 0"));
  const double rest = level < 1 ? 1 - level : 1 - first_inner_level;
  const double square = noise * noise * level / rest, dt = level_arrival - level;
  GaussianStep step;
  step.timestep = static_cast<int>(std::lround(1000 * level));
  step.arrival = static_cast<int>(std::lround(1000 * level_arrival));
  step.a = 1 + square * dt / (2 * level);
  step.c = (1 + square * (1 - level) / (2 * level)) * dt;
  step.sigma = std::sqrt(-square * dt);
  return step;
}

}  // namespace lpo::inline LPO_ABI
