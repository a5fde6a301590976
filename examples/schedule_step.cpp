// SPDX-License-Identifier: MIT
// A noise schedule and twenty DDIM steps, with a formula in the place of the network.
#include <cmath>
#include <cstdio>
#include <span>

#include <lpo/lpo.hpp>

/// Predicts the noise exactly for a data set with one picture, which is 0.5 everywhere.
struct OnePicture {
  lpo::Context<lpo::Cpu>& context;
  const lpo::NoiseSchedule& schedule;

  void predict(lpo::View<const float, 4, lpo::Cpu> x, double timestep, lpo::View<float, 4, lpo::Cpu> noise) {
    const double alpha_bar = schedule.alpha_bar(timestep);
    lpo::evaluate(&context, noise, (x - 0.5 * std::sqrt(alpha_bar)) / std::sqrt(1 - alpha_bar));
  }
};

int main() {
  const lpo::NoiseSchedule schedule;  // Stable Diffusion's
  for (const int t : {0, 500, 999}) std::printf("alpha_bar(%3d) = %.6f\n", t, schedule.alpha_bar(t));

  lpo::Context<lpo::Cpu> context;
  OnePicture model{context, schedule};
  lpo::Tensor<float, 4> x({1, 8, 8, 4});
  lpo::fill_normal(context, x.view(), {/*seed=*/1});
  const auto steps = lpo::ddim_steps(schedule, 20, /*eta=*/1.0);
  std::printf("first step: t %d -> %d, x' = %.4f x %+.4f noise %+.4f z\n", steps[0].timestep, steps[0].arrival,
              steps[0].a, steps[0].c, steps[0].sigma);
  lpo::sample(context, std::span<const lpo::GaussianStep>(steps), model, x.view(), /*seed=*/2);

  double error = 0;
  for (const float value : x.span()) error += std::pow(double(value) - 0.5, 2) / double(x.size());
  std::printf("distance from the picture: %.4f\n", std::sqrt(error));
}
