// SPDX-License-Identifier: MIT
// Beta schedules against closed forms, published values of Stable Diffusion and tables made by diffusers.
#include <lpo/diffusion/noise_schedule.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/io/safetensors.hpp>

using doctest::Approx;
using lpo::BetaSchedule;
using lpo::NoiseSchedule;
using lpo::Reference;
using lpo::SchedulerConfig;
using lpo::Tensor;

namespace {

SchedulerConfig config_of(BetaSchedule schedule) {
  SchedulerConfig config;
  config.beta_schedule = schedule;
  if (schedule != BetaSchedule::scaled_linear) {
    config.beta_start = 0.0001;
    config.beta_end = 0.02;
  }
  return config;
}

void check_near(double value, double expected, double relative) {
  CAPTURE(value);
  CAPTURE(expected);
  CHECK(std::fabs(value - expected) <= relative * std::fabs(expected));
}

}  // namespace

TEST_CASE("betas and cumulative products of Stable Diffusion") {
  const NoiseSchedule schedule;
  check_near(schedule.betas()[0], 0.00085, 1e-12);
  check_near(schedule.betas()[1], 0.0008546986554, 1e-9);
  check_near(schedule.betas()[500], 0.004814954142, 1e-9);
  check_near(schedule.betas()[999], 0.012, 1e-12);
  const struct {
    int t;
    double alpha_bar;
  } table[] = {{0, 0.99915},       {1, 0.998296028},   {51, 0.950524322},  {101, 0.892980537}, {251, 0.672151470},
               {501, 0.274999067}, {751, 0.055719029}, {901, 0.014004898}, {951, 0.008155005}, {999, 0.004660099}};
  for (const auto& row : table) CHECK(std::fabs(schedule.alpha_bar(row.t) - row.alpha_bar) < 1e-9);
  check_near(std::sqrt(schedule.alpha_bar(951)), 0.0903050640, 1e-8);
  check_near(std::sqrt(1 - schedule.alpha_bar(951)), 0.9959141514, 1e-9);
}

TEST_CASE("the float table is torch's, bit for bit, and 2e-6 from the exact one") {
  const lpo::SafetensorsFile golden(std::string(LPO_TEST_GOLDEN_DIR) + "/schedulers.safetensors");
  for (const auto kind : {BetaSchedule::linear, BetaSchedule::scaled_linear, BetaSchedule::squaredcos_cap_v2}) {
    const NoiseSchedule schedule(config_of(kind));
    const std::string name(lpo::name_of(kind));
    CAPTURE(name);
    const auto betas = golden.read_vector<double>("betas/" + name);
    const auto exact = golden.read_vector<double>("alphas_cumprod/" + name);
    const auto torch = golden.read_vector<float>("alphas_cumprod_fp32/" + name);
    const auto table = schedule.torch_alpha_bars();
    double worst_beta = 0, worst = 0;
    int different = 0;
    for (std::size_t t = 0; t < 1000; ++t) {
      worst_beta = std::max(worst_beta, std::fabs(schedule.betas()[t] / betas[t] - 1));
      worst = std::max(worst, std::fabs(schedule.alpha_bars()[t] / exact[t] - 1));
      different += table[t] != torch[t];
    }
    CHECK(worst_beta < 1e-13);
    CHECK(worst < 1e-11);
    CHECK(different == 0);
  }
  const auto table = NoiseSchedule().torch_alpha_bars();
  check_near(table[501], 0.274999067, 2e-6);
  check_near(table[951], 0.008155005, 2e-6);
}

TEST_CASE("zero terminal SNR: the last cumulative product is 0, the first stays") {
  SchedulerConfig config;
  config.rescale_betas_zero_snr = true;
  const NoiseSchedule schedule(config);
  check_near(schedule.alpha_bar(0), 0.99915, 1e-12);
  CHECK(schedule.alpha_bar(999) == 0);
  // sqrt(abar) is an affine image of the unscaled sqrt(abar).
  const NoiseSchedule plain;
  const double low = std::sqrt(plain.alpha_bar(999)), high = std::sqrt(plain.alpha_bar(0));
  check_near(std::sqrt(schedule.alpha_bar(500)), (std::sqrt(plain.alpha_bar(500)) - low) * high / (high - low), 1e-10);
}

TEST_CASE("forward noising takes one timestep per row") {
  const NoiseSchedule schedule;
  lpo::Context<Reference> context(1);
  const lpo::Extents<4> extents{3, 1, 2, 2};
  auto clean = Tensor<double, 4, Reference>::full(extents, 2.0);
  auto noise = Tensor<double, 4, Reference>::full(extents, -1.0);
  noise(1, 0, 1, 0) = 0.5;
  Tensor<double, 4, Reference> noisy(extents);
  const int timesteps[] = {1, 501, 951};
  lpo::add_noise(context, schedule, timesteps, clean, noise, noisy.view());
  CHECK(noisy(0, 0, 0, 0) == Approx(2 * std::sqrt(0.998296028) - std::sqrt(1 - 0.998296028)));
  CHECK(noisy(1, 0, 1, 0) == Approx(2 * std::sqrt(0.274999067) + 0.5 * std::sqrt(1 - 0.274999067)));
  CHECK(noisy(2, 0, 1, 1) == Approx(2 * 0.0903050640 - 0.9959141514));
  CHECK_THROWS_AS(lpo::add_noise(context, schedule, std::span(timesteps, 2), clean, noise, noisy.view()),
                  lpo::ShapeError);
}

TEST_CASE("wrong configurations are refused with a remedy") {
  SchedulerConfig config;
  config.beta_end = 1.5;
  CHECK_THROWS_AS(NoiseSchedule{config}, lpo::ValueError);
  config = {};
  config.clip_sample = true;
  CHECK_THROWS_AS(NoiseSchedule{config}, lpo::ValueError);
  CHECK_THROWS_AS(NoiseSchedule().alpha_bar(1000), lpo::ValueError);
  CHECK_THROWS_AS(NoiseSchedule().alpha_bar(999.5), lpo::ValueError);
  CHECK_THROWS_AS(NoiseSchedule().alpha_bar(-0.5), lpo::ValueError);
  CHECK_THROWS_AS(lpo::parse_beta_schedule("cosine"), lpo::ValueError);
  CHECK(lpo::parse_beta_schedule("scaled_linear") == BetaSchedule::scaled_linear);
  CHECK(lpo::parse_prediction_type("v_prediction") == lpo::PredictionType::v_prediction);
  CHECK(lpo::parse_timestep_spacing("trailing") == lpo::TimestepSpacing::trailing);
}

TEST_CASE("between timesteps sigma is interpolated") {
  const NoiseSchedule schedule;
  CHECK(schedule.alpha_bar(500.0) == schedule.alpha_bar(500));
  CHECK(schedule.alpha_bar(999.0) == schedule.alpha_bar(999));
  const auto sigma = [&](double t) { return std::sqrt(1 / schedule.alpha_bar(t) - 1); };
  check_near(sigma(500.25), 0.75 * sigma(500) + 0.25 * sigma(501), 1e-12);
}
