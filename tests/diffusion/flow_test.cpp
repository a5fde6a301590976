// SPDX-License-Identifier: MIT
// Flow steps against the published scalar vectors.
#include <lpo/diffusion/flow.hpp>

#include <doctest/doctest.h>

#include <cmath>

TEST_CASE("posterior-form flow steps at x 0.5, v -0.3, z 1.2") {
  const struct {
    double from, to, sigma, mean, next;
  } table[] = {{1.0, 0.95, 0.95, 0.04, 1.18},
               {0.75, 0.70, 0.4399776, 0.4488889, 0.9768620},
               {0.5, 0.45, 0.2587318, 0.4863636, 0.7968418},
               {0.1, 0.05, 0.0440347, 0.5089474, 0.5617891}};
  for (const auto& row : table) {
    const auto step = lpo::flow_step(row.from, row.to, 1.0);
    const double mean = step.a * 0.5 + step.c * -0.3;
    CHECK(std::fabs(step.sigma - row.sigma) < 1e-7);
    CHECK(std::fabs(mean - row.mean) < 1e-7);
    CHECK(std::fabs(mean + 1.2 * step.sigma - row.next) < 1e-7);
  }
  CHECK(lpo::flow_step(0.05, 0.0, 1.0).sigma == 0);
  CHECK_THROWS_AS(lpo::flow_step(0.5, 0.5, 1.0), lpo::ValueError);
}

TEST_CASE("the SDE step of Flow-GRPO at x 0.5, v -0.3") {
  const auto middle = lpo::flow_sde_step(0.5, 0.45, 0.95);
  CHECK(std::fabs(middle.sigma - 0.1565248) < 1e-7);
  CHECK(std::fabs(middle.a * 0.5 + middle.c * -0.3 - 0.5064250) < 1e-7);
  const auto late = lpo::flow_sde_step(0.1, 0.05, 0.95);
  CHECK(std::fabs(late.sigma - 0.0521749) < 1e-7);
  CHECK(std::fabs(late.a * 0.5 + late.c * -0.3 - 0.5118694) < 1e-7);
}
