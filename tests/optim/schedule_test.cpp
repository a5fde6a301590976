// SPDX-License-Identifier: MIT
// Learning-rate schedules against published values and closed forms.
#include <lpo/optim/schedule.hpp>

#include <doctest/doctest.h>

#include <cmath>

using lpo::LearningRateKind;
using lpo::LearningRateSchedule;

TEST_CASE("logarithmic warm-up and linear decay, warm-up 500 of 4000 steps, peak 1e-5") {
  const LearningRateSchedule rate{LearningRateKind::log_warmup_decay, 1e-5, 500, 4000};
  const struct {
    int step;
    double rate;
  } table[] = {{0, 0},      {1, 1.1153514e-6}, {9, 3.7051171e-6}, {99, 7.4102343e-6},
               {499, 1e-5}, {500, 1e-5},       {2250, 5e-6},      {3999, 2.8571429e-9}};
  for (const auto& row : table) CHECK(std::fabs(rate(row.step) - row.rate) <= 1e-7 * row.rate);
  CHECK(rate(4000) == 0);
  CHECK(rate(9000) == 0);
}

TEST_CASE("the official run starts at the peak and lags by one step") {
  const LearningRateSchedule rate{LearningRateKind::log_warmup_decay, 1e-5, 500, 4000, lpo::FirstStepRate::official};
  CHECK(rate(0) == 1e-5);
  CHECK(rate(1) == 0);
  CHECK(std::fabs(rate(2) - 1.1153514e-6) < 1e-12);
  CHECK(std::fabs(rate(2251) - 5e-6) < 1e-15);
}

TEST_CASE("constant, linear and cosine") {
  CHECK(LearningRateSchedule{LearningRateKind::constant, 6e-5}(123) == 6e-5);
  const LearningRateSchedule warm{LearningRateKind::constant_with_warmup, 2.0, 10};
  CHECK(warm(0) == 0);
  CHECK(warm(5) == doctest::Approx(1.0));
  CHECK(warm(10) == 2.0);
  CHECK(warm(1000) == 2.0);
  const LearningRateSchedule linear{LearningRateKind::linear, 2.0, 10, 110};
  CHECK(linear(10) == 2.0);
  CHECK(linear(60) == doctest::Approx(1.0));
  CHECK(linear(110) == 0);
  const LearningRateSchedule cosine{LearningRateKind::cosine, 2.0, 0, 100};
  CHECK(cosine(0) == 2.0);
  CHECK(cosine(50) == doctest::Approx(1.0));
  CHECK(cosine(25) == doctest::Approx(1 + std::sqrt(0.5)));
  CHECK(cosine(100) == doctest::Approx(0).epsilon(1e-12));
  CHECK_THROWS_AS(cosine(-1), lpo::ValueError);
}
