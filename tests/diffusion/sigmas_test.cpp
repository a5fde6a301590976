// SPDX-License-Identifier: MIT
// Noise levels in sigma against published numbers and closed forms.
#include <lpo/diffusion/sigmas.hpp>

#include <doctest/doctest.h>

#include <cmath>

using doctest::Approx;
using lpo::NoiseSchedule;
using lpo::SchedulerConfig;

TEST_CASE("Stable Diffusion's sigmas go from 0.0292 to 14.6146, with zero terminal SNR to 4096") {
  const auto sigmas = lpo::training_sigmas(NoiseSchedule());
  REQUIRE(sigmas.size() == 1000);
  CHECK(sigmas.front() == Approx(0.0292).epsilon(1e-3));
  CHECK(sigmas.back() == Approx(14.6146).epsilon(1e-5));
  SchedulerConfig config;
  config.rescale_betas_zero_snr = true;
  CHECK(lpo::training_sigmas(NoiseSchedule(config)).back() == Approx(4096));
}

TEST_CASE("Karras levels are even in the seventh root") {
  const auto sigmas = lpo::karras_sigmas(14.0, 0.5, 9);
  CHECK(sigmas.front() == Approx(14.0));
  CHECK(sigmas.back() == Approx(0.5));
  CHECK(sigmas[4] == Approx(std::pow((std::pow(14.0, 1 / 7.0) + std::pow(0.5, 1 / 7.0)) / 2, 7)));
  CHECK(lpo::karras_sigmas(14.0, 0.5, 1) == std::vector<double>{std::pow(std::pow(14.0, 1 / 7.0), 7)});
}

TEST_CASE("a timestep is found again from its sigma") {
  const auto sigmas = lpo::training_sigmas(NoiseSchedule());
  for (const int t : {0, 1, 500, 998, 999})
    CHECK(lpo::detail::timestep_at(sigmas, sigmas[static_cast<std::size_t>(t)]) == Approx(t));
  CHECK(lpo::detail::timestep_at(sigmas, std::sqrt(sigmas[10] * sigmas[11])) == Approx(10.5));
  CHECK(lpo::detail::timestep_at(sigmas, 1e-3) == 0);
  CHECK(lpo::detail::timestep_at(sigmas, 1e3) == 999);
  CHECK(lpo::detail::sigma_at(sigmas, 10.25) == Approx(0.75 * sigmas[10] + 0.25 * sigmas[11]));
}

TEST_CASE("a grid has one sigma more than timesteps") {
  SchedulerConfig config;
  const auto to_zero = lpo::euler_sigmas(NoiseSchedule(config), 5, false);
  CHECK(to_zero.timesteps == std::vector<double>{801, 601, 401, 201, 1});
  REQUIRE(to_zero.sigmas.size() == 6);
  CHECK(to_zero.sigmas.back() == 0);
  config.final_sigmas_type = lpo::FinalSigmasType::sigma_min;
  CHECK(lpo::dpm_sigmas(NoiseSchedule(config), 5, true).sigmas.back() == Approx(0.0292).epsilon(1e-3));
  CHECK(lpo::dpm_sigmas(NoiseSchedule(config), 5, false).timesteps == std::vector<double>{831, 665, 499, 333, 167});
  config.steps_offset = 0;
  CHECK(lpo::dpm_sigmas(NoiseSchedule(config), 999, false).timesteps.front() == 999);
  CHECK_THROWS_WITH_AS(lpo::dpm_sigmas(NoiseSchedule(config), 1000, false),
                       "[timesteps] 1000 steps asked of DPM++ over 1000 training timesteps, which leading spacing parts into "
                       "one step more than are taken; expected at most 999",
                       lpo::ValueError);
  CHECK(lpo::dpm_sigmas(NoiseSchedule(config), 1000, true).timesteps.size() == 1000);
}
