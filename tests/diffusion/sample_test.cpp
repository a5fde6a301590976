// SPDX-License-Identifier: MIT
// The sampling loop with a predictor that knows the answer.
#include <lpo/diffusion/sample.hpp>

#include <doctest/doctest.h>

#include <cmath>

#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/random.hpp>
#include <lpo/diffusion/ddim.hpp>
#include <lpo/diffusion/ddpm.hpp>

using lpo::Reference;
using lpo::Tensor;

namespace {

/// Predicts the noise that leads from the constant image `clean` to x_t.
struct Oracle {
  const lpo::NoiseSchedule& schedule;
  double clean;

  void predict(lpo::View<const double, 4, Reference> x, double timestep, lpo::View<double, 4, Reference> prediction) {
    const double alpha_bar = schedule.alpha_bar(timestep);
    lpo::evaluate<double, 4, Reference>(nullptr, prediction,
                                        (x - std::sqrt(alpha_bar) * clean) / std::sqrt(1 - alpha_bar));
  }
};

}  // namespace

TEST_CASE("with a perfect predictor every sampler arrives at the clean latent") {
  const lpo::NoiseSchedule schedule;
  lpo::Context<Reference> context(1);
  Oracle oracle{schedule, 0.8};
  Tensor<double, 4, Reference> latents(lpo::Extents<4>{2, 2, 2, 4});
  const double first_spread = std::sqrt(1 - schedule.alpha_bar(0));

  lpo::fill_normal(context, latents.view(), {7, lpo::random_operation::initial_latents, 0});
  lpo::sample(context, lpo::ddpm_steps(schedule, 20), oracle, latents.view(), 7);
  for (const double value : latents.span()) CHECK(value == doctest::Approx(0.8));

  lpo::fill_normal(context, latents.view(), {7, lpo::random_operation::initial_latents, 0});
  const auto start = latents.clone();
  int calls = 0;
  lpo::sample(context, lpo::ddim_steps(schedule, 20, 0.0), oracle, latents.view(), 7,
              [&](int done, int total) { return ++calls, done <= total; });
  CHECK(calls == 20);
  // DDIM keeps eps: x at t=0 is sqrt(abar_0) x_0 + sqrt(1 - abar_0) eps with the eps of the start.
  for (int i = 0; i < 32; ++i) {
    const double eps =
        (start.data()[i] - std::sqrt(schedule.alpha_bar(951)) * 0.8) / std::sqrt(1 - schedule.alpha_bar(951));
    CHECK(latents.data()[i] == doctest::Approx(std::sqrt(schedule.alpha_bar(0)) * 0.8 + first_spread * eps));
  }
}

TEST_CASE("a callback that returns false cancels") {
  const lpo::NoiseSchedule schedule;
  lpo::Context<Reference> context(1);
  Oracle oracle{schedule, 0.0};
  auto latents = Tensor<double, 4, Reference>::zeros({1, 1, 1, 4});
  const auto chain = lpo::ddim_steps(schedule, 10, 1.0);
  CHECK_THROWS_AS(lpo::sample(context, chain, oracle, latents.view(), 7, [](int done, int) { return done < 3; }),
                  lpo::CancelledError);
}

TEST_CASE("rows of a batch have the same initial bits in any batch") {
  lpo::Context<Reference> context(1);
  Tensor<float, 4, Reference> all(lpo::Extents<4>{4, 1, 3, 3}), tail(lpo::Extents<4>{2, 1, 3, 3});
  fill_normal(context, all.view(), {3, lpo::random_operation::initial_latents, 0});
  fill_normal(context, tail.view(), {3, lpo::random_operation::initial_latents, 0}, 18);
  for (int i = 0; i < 18; ++i) CHECK(all.data()[18 + i] == tail.data()[i]);
}

TEST_CASE("a chain of GaussianSteps gives the bits of its formula, step by step") {
  const lpo::NoiseSchedule schedule;
  lpo::Context<Reference> context(1);
  Oracle oracle{schedule, 0.8};
  const auto chain = lpo::ddim_steps(schedule, 5, 0.5);
  Tensor<double, 4, Reference> x(lpo::Extents<4>{2, 1, 1, 4}), y(lpo::Extents<4>{2, 1, 1, 4}), z(y.extents());
  lpo::fill_normal(context, x.view(), {7, lpo::random_operation::initial_latents, 0});
  Tensor<double, 4, Reference> expected = x.clone();
  for (std::uint32_t i = 0; i < 5; ++i) {
    oracle.predict(expected.view(), chain[i].timestep, y.view());
    lpo::fill_normal(context, z.view(), {7, lpo::random_operation::sampling_noise, i});
    expected = chain[i].next(expected, y, z);
  }
  lpo::sample(context, chain, oracle, x.view(), 7);
  for (int i = 0; i < 8; ++i) CHECK(x.data()[i] == expected.data()[i]);
}
