// SPDX-License-Identifier: MIT
// Timestep spacings against diffusers.
#include <lpo/diffusion/timesteps.hpp>

#include <doctest/doctest.h>

#include <string>

#include <lpo/io/safetensors.hpp>

TEST_CASE("twenty leading steps run 951, 901, ..., 1") {
  const auto timesteps = lpo::make_timesteps({}, 20);
  REQUIRE(timesteps.size() == 20);
  for (int i = 0; i < 20; ++i) CHECK(timesteps[static_cast<std::size_t>(i)] == 50 * (19 - i) + 1);
}

TEST_CASE("all spacings agree with diffusers") {
  const lpo::SafetensorsFile golden(std::string(LPO_TEST_GOLDEN_DIR) + "/schedulers.safetensors");
  for (const auto spacing :
       {lpo::TimestepSpacing::leading, lpo::TimestepSpacing::trailing, lpo::TimestepSpacing::linspace})
    for (const int steps : {7, 10, 20, 50}) {
      lpo::SchedulerConfig config;
      config.timestep_spacing = spacing;
      const auto expected =
          golden.read_vector<int>("timesteps/" + std::string(lpo::name_of(spacing)) + "/" + std::to_string(steps));
      CHECK(lpo::make_timesteps(config, steps) == expected);
    }
}

TEST_CASE("impossible step counts are refused") {
  CHECK_THROWS_AS(lpo::make_timesteps({}, 0), lpo::ValueError);
  CHECK_THROWS_AS(lpo::make_timesteps({}, 1001), lpo::ValueError);
  CHECK_THROWS_AS(lpo::make_timesteps({}, 1000), lpo::ValueError);  // leading with offset 1 would visit 1000
}
