// SPDX-License-Identifier: MIT
// Runs a chain of steps in float with the predictions and noises of a golden file and compares every step with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/diffusion/ddim.hpp>
#include <lpo/diffusion/ddpm.hpp>
#include <lpo/io/safetensors.hpp>

#include <doctest/doctest.h>

/// The measure of tests/reference/README.md.
inline double relative_error(const float* value, const float* truth, std::size_t count) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < count; ++i) {
    difference += std::pow(static_cast<double>(value[i]) - static_cast<double>(truth[i]), 2);
    norm += std::pow(static_cast<double>(truth[i]), 2);
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-3 * std::sqrt(static_cast<double>(count)));
}

inline void check_golden_loop(const std::string& name, const std::vector<lpo::GaussianStep>& chain,
                              const lpo::NoiseSchedule& schedule) {
  using Latents = lpo::Tensor<float, 4, lpo::Reference>;
  CAPTURE(name);
  const lpo::SafetensorsFile golden(std::string(LPO_TEST_GOLDEN_DIR) + "/schedulers.safetensors");
  const lpo::Extents<4> extents{2, 4, 3, 5};
  const std::size_t size = 120;
  const auto all = [&](const std::string& key) { return golden.read_vector<float>(key); };
  const std::string inputs = "in/" + std::to_string(chain.size());
  const auto predictions = all(inputs + "/predictions"), noises = all(inputs + "/noises");
  const auto latents = all(name + "/latents");
  const bool has_means = golden.contains(name + "/means"), has_density = golden.contains(name + "/logp");
  const auto means = has_means ? all(name + "/means") : std::vector<float>();
  const auto clean = has_means ? all(name + "/clean") : std::vector<float>();
  const auto sigmas = has_means ? golden.read_vector<double>(name + "/sigma") : std::vector<double>();
  const auto density = has_density ? all(name + "/logp") : std::vector<float>();
  const auto timesteps = golden.read_vector<int>(name + "/timesteps");

  lpo::Context<lpo::Reference> context(1);
  auto x = Latents::from(extents, all(inputs + "/start"));
  REQUIRE(timesteps.size() == chain.size());
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const auto& step = chain[i];
    CAPTURE(step.timestep);
    CHECK(step.timestep == timesteps[i]);
    const auto at = [&](const std::vector<float>& values) { return std::span(values).subspan(i * size, size); };
    const auto prediction = Latents::from(extents, at(predictions)), noise = Latents::from(extents, at(noises));
    const Latents mean = step.mean(x, prediction);
    const Latents next = step.next(x, prediction, noise);
    CHECK(relative_error(next.data(), at(latents).data(), size) < 1e-6);
    if (has_means) {
      const Latents cleaned =
          lpo::clean_coefficients(schedule.config().prediction_type, schedule.alpha_bar(step.timestep))(x, prediction);
      CHECK(relative_error(mean.data(), at(means).data(), size) < 1e-6);
      CHECK(relative_error(cleaned.data(), at(clean).data(), size) < 1e-6);
      CHECK(std::fabs(step.sigma - sigmas[i]) <= 1e-10);
    }
    // Continue from the file's latents, as the loop that made it did: errors are then of one step.
    x = Latents::from(extents, at(latents));
    if (has_density) {
      const auto before = i == 0 ? Latents::from(extents, all(inputs + "/start"))
                                 : Latents::from(extents, std::span(latents).subspan((i - 1) * size, size));
      const auto values = lpo::log_probability<float>(context, step, x, before, prediction);
      for (std::size_t row = 0; row < 2; ++row)
        CHECK(std::fabs(values[row] - static_cast<double>(density[2 * i + row])) < 2e-5);
    }
  }
}

inline void check_golden_ddim(const std::string& name, int steps, double eta, lpo::PredictionType type) {
  lpo::SchedulerConfig config;
  config.prediction_type = type;
  const lpo::NoiseSchedule schedule(config);
  check_golden_loop(name, lpo::ddim_steps(schedule, steps, eta), schedule);
}
