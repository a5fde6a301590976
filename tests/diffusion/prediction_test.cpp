// SPDX-License-Identifier: MIT
// Prediction types: every conversion recovers the noise, the velocity and the clean value that made x_t.
#include <lpo/diffusion/prediction.hpp>

#include <doctest/doctest.h>

#include <cmath>

TEST_CASE("each prediction type recovers x_0, eps and v") {
  const double clean = 0.7, noise = -1.3;
  for (const double alpha_bar : {0.0082, 0.275, 0.9983}) {
    const double signal = std::sqrt(alpha_bar), spread = std::sqrt(1 - alpha_bar);
    const double x = signal * clean + spread * noise, v = signal * noise - spread * clean;
    const struct {
      lpo::PredictionType type;
      double output;
    } cases[] = {{lpo::PredictionType::epsilon, noise},
                 {lpo::PredictionType::v_prediction, v},
                 {lpo::PredictionType::sample, clean}};
    for (const auto& c : cases) {
      const auto to_clean = lpo::clean_coefficients(c.type, alpha_bar);
      const auto to_noise = lpo::epsilon_coefficients(c.type, alpha_bar);
      const auto to_velocity = lpo::velocity_coefficients(c.type, alpha_bar);
      CHECK(to_clean.latent * x + to_clean.output * c.output == doctest::Approx(clean));
      CHECK(to_noise.latent * x + to_noise.output * c.output == doctest::Approx(noise));
      CHECK(to_velocity.latent * x + to_velocity.output * c.output == doctest::Approx(v));
    }
  }
}
