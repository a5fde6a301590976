// SPDX-License-Identifier: MIT
// The DDPM step against diffusers' loops and against DDIM, with which it agrees at eta 1.
#include <lpo/diffusion/ddpm.hpp>

#include <doctest/doctest.h>

#include "golden_loop.hpp"

TEST_CASE("DDPM loops of diffusers, step by step") {
  const lpo::NoiseSchedule schedule;
  check_golden_loop("ddpm_20", lpo::ddpm_steps(schedule, 20), schedule);
  check_golden_loop("ddpm_10", lpo::ddpm_steps(schedule, 10), schedule);
}

TEST_CASE("between the same timesteps DDPM is DDIM with eta 1") {
  const lpo::NoiseSchedule schedule;
  for (const int timestep : {951, 501, 51}) {
    const auto ancestral = lpo::ddpm_step(schedule, timestep, timestep - 50);
    const auto implicit = lpo::ddim_step(schedule, timestep, 50, 1.0);
    CHECK(ancestral.a == doctest::Approx(implicit.a).epsilon(1e-12));
    CHECK(ancestral.c == doctest::Approx(implicit.c).epsilon(1e-12));
    CHECK(ancestral.sigma == doctest::Approx(implicit.sigma).epsilon(1e-12));
  }
  CHECK_THROWS_AS(lpo::ddpm_step(schedule, 1, 1), lpo::ValueError);
}
