// SPDX-License-Identifier: MIT
// DDIM coefficients and scalar steps against the published table of the method, whole loops against diffusers.
#include <lpo/diffusion/ddim.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "golden_loop.hpp"

using lpo::ddim_step;
using lpo::NoiseSchedule;
using lpo::Reference;
using lpo::Tensor;

namespace {

constexpr double half_unit = 5.1e-8;  // the expected numbers have seven decimals

void check_digits(double value, double expected) {
  CAPTURE(value);
  CAPTURE(expected);
  CHECK(std::fabs(value - expected) <= half_unit);
}

}  // namespace

TEST_CASE("all twenty steps with eta 1: variance, sigma, a, c") {
  const struct {
    int t, arrival;
    double variance, sigma, a, c;
  } table[] = {
      {951, 901, 0.4152398, 0.6443910, 1.3104724, -0.5496345}, {901, 851, 0.3895057, 0.6241039, 1.2836587, -0.5082067},
      {851, 801, 0.3634771, 0.6028906, 1.2584428, -0.4692561}, {801, 751, 0.3372452, 0.5807282, 1.2347491, -0.4328512},
      {751, 701, 0.3109362, 0.5576165, 1.2125077, -0.3990472}, {701, 651, 0.2847077, 0.5335801, 1.1916535, -0.3678727},
      {651, 601, 0.2587411, 0.5086660, 1.1721265, -0.3393220}, {601, 551, 0.2332289, 0.4829378, 1.1538710, -0.3133517},
      {551, 501, 0.2083620, 0.4564669, 1.1368355, -0.2898845}, {501, 451, 0.1843166, 0.4293211, 1.1209726, -0.2688177},
      {451, 401, 0.1612448, 0.4015530, 1.1062384, -0.2500374}, {401, 351, 0.1392657, 0.3731833, 1.0925927, -0.2334376},
      {351, 301, 0.1184588, 0.3441785, 1.0799985, -0.2189472}, {301, 251, 0.0988527, 0.3144085, 1.0684219, -0.2065736},
      {251, 201, 0.0804031, 0.2835544, 1.0578321, -0.1964833}, {201, 151, 0.0629349, 0.2508684, 1.0482011, -0.1891843},
      {151, 101, 0.0459644, 0.2143930, 1.0395037, -0.1860203}, {101, 51, 0.0279875, 0.1672947, 1.0317171, -0.1909257},
      {51, 1, 0.0016481, 0.0405967, 1.0248211, -0.2204771},    {1, 0, 0.0004264, 0.0206483, 1.0004276, -0.0207142}};
  const auto chain = lpo::ddim_steps(NoiseSchedule(), 20, 1.0);
  REQUIRE(chain.size() == 20);
  for (std::size_t i = 0; i < 20; ++i) {
    CAPTURE(table[i].t);
    CHECK(chain[i].timestep == table[i].t);
    CHECK(chain[i].arrival == table[i].arrival);
    check_digits(chain[i].sigma * chain[i].sigma, table[i].variance);
    check_digits(chain[i].sigma, table[i].sigma);
    check_digits(chain[i].a, table[i].a);
    check_digits(chain[i].c, table[i].c);
  }
}

TEST_CASE("a scalar step: mean, next latent, log-probability") {
  const struct {
    int t;
    double clean, mean, next, log_probability;
  } table[] = {{951, 8.8452874, 0.8201265, 1.5933957, -1.1994890},
               {501, 1.4405718, 0.6411316, 1.1563170, -0.7933885},
               {1, 0.5128209, 0.5064281, 0.5312060, 2.2411828}};
  const NoiseSchedule schedule;
  lpo::Context<Reference> context(1);
  const lpo::Extents<4> one{1, 1, 1, 1};
  const auto x = Tensor<double, 4, Reference>::full(one, 0.5), eps = Tensor<double, 4, Reference>::full(one, -0.3);
  const auto z = Tensor<double, 4, Reference>::full(one, 1.2);
  for (const auto& row : table) {
    const auto step = ddim_step(schedule, row.t, 50, 1.0);
    const Tensor<double, 4, Reference> clean =
        lpo::clean_coefficients(lpo::PredictionType::epsilon, schedule.alpha_bar(row.t))(x, eps);
    const Tensor<double, 4, Reference> mean = step.mean(x, eps);
    const Tensor<double, 4, Reference> next = step.next(x, eps, z);
    check_digits(clean(0, 0, 0, 0), row.clean);
    check_digits(mean(0, 0, 0, 0), row.mean);
    check_digits(next(0, 0, 0, 0), row.next);
    check_digits(lpo::log_probability<double>(context, step, next, x, eps)[0], row.log_probability);
  }
}

TEST_CASE("sigma in closed form for other step counts") {
  const struct {
    int steps, index;
    double sigma;
  } table[] = {{10, 0, 0.0206483}, {10, 1, 0.0409842}, {10, 5, 0.5276090},  {10, 9, 0.7763322},
               {50, 0, 0.0206483}, {50, 1, 0.0394795}, {50, 25, 0.2947845}, {50, 49, 0.4544633}};
  for (const auto& row : table) {
    const auto chain = lpo::ddim_steps(NoiseSchedule(), row.steps, 1.0);
    check_digits(chain[chain.size() - 1 - static_cast<std::size_t>(row.index)].sigma, row.sigma);
  }
}

TEST_CASE("the arrival is clamped, so that the last sigma stays positive whatever set_alpha_to_one says") {
  lpo::SchedulerConfig config;
  config.set_alpha_to_one = true;
  const NoiseSchedule schedule(config);
  check_digits(ddim_step(schedule, 1, 50, 1.0).sigma, 0.0206483);
  CHECK(ddim_step(schedule, 1, 50, 1.0, lpo::LastArrival::final_alpha).sigma == 0);
  CHECK_THROWS_AS(ddim_step(schedule, 1, 50, 1.5), lpo::ValueError);
}

TEST_CASE("a deterministic step has no density") {
  lpo::Context<Reference> context(1);
  const auto x = Tensor<double, 4, Reference>::zeros({1, 1, 1, 1});
  CHECK_THROWS_AS(lpo::log_probability<double>(context, ddim_step(NoiseSchedule(), 501, 50, 0.0), x, x, x),
                  lpo::ValueError);
}

TEST_CASE("velocity and clean prediction take the same step as the equivalent noise prediction") {
  const double x = 0.4, eps = -0.8, alpha_bar = 0.6, then = 0.8;
  const double clean = (x - std::sqrt(1 - alpha_bar) * eps) / std::sqrt(alpha_bar);
  const double v = std::sqrt(alpha_bar) * eps - std::sqrt(1 - alpha_bar) * clean;
  const auto by_noise = lpo::ddim_step_between(lpo::PredictionType::epsilon, alpha_bar, then, 0.7);
  const auto by_velocity = lpo::ddim_step_between(lpo::PredictionType::v_prediction, alpha_bar, then, 0.7);
  const auto by_clean = lpo::ddim_step_between(lpo::PredictionType::sample, alpha_bar, then, 0.7);
  const double mean = by_noise.a * x + by_noise.c * eps;
  CHECK(by_velocity.a * x + by_velocity.c * v == doctest::Approx(mean));
  CHECK(by_clean.a * x + by_clean.c * clean == doctest::Approx(mean));
}

TEST_CASE("DDIM loops of diffusers, step by step") {
  using lpo::PredictionType;
  check_golden_ddim("ddim_eta0_20", 20, 0.0, PredictionType::epsilon);
  check_golden_ddim("ddim_eta1_20", 20, 1.0, PredictionType::epsilon);
  check_golden_ddim("ddim_eta0_10", 10, 0.0, PredictionType::epsilon);
  check_golden_ddim("ddim_eta1_10", 10, 1.0, PredictionType::epsilon);
  check_golden_ddim("ddim_v_prediction_10", 10, 1.0, PredictionType::v_prediction);
  check_golden_ddim("ddim_sample_10", 10, 1.0, PredictionType::sample);
}
