// SPDX-License-Identifier: MIT
// Thresholds against the published tables and the closed form for other step counts.
#include <lpo/preference/threshold.hpp>

#include <doctest/doctest.h>

#include <cmath>

using lpo::pair_thresholds;
using lpo::ThresholdMode;
using lpo::ThresholdOptions;
using lpo::ThresholdTable;

namespace {

ThresholdOptions options_of(ThresholdMode mode, ThresholdTable table, double minimum = 0.35, double maximum = 0.5) {
  ThresholdOptions options;
  options.mode = mode;
  options.table = table;
  options.minimum = minimum;
  options.maximum = maximum;
  return options;
}

void check_digits(double value, double expected) {
  CAPTURE(value);
  CAPTURE(expected);
  CHECK(std::fabs(value - expected) <= 5.1e-8);
}

/// Index of timestep t in a run of 20 steps.
constexpr std::size_t at(int t) { return static_cast<std::size_t>((951 - t) / 50); }

}  // namespace

TEST_CASE("the official table of twenty steps, in all modes") {
  const double sigma[20] = {0.5000000, 0.4951186, 0.4900208, 0.4846826, 0.4791279, 0.4733568, 0.4673693,
                            0.4611654, 0.4548172, 0.4482767, 0.4416159, 0.4347868, 0.4278134, 0.4206476,
                            0.4132414, 0.4053783, 0.3966015, 0.3852757, 0.3548092, 0.3500000};
  const double variance[20] = {0.5000000, 0.4906725, 0.4812726, 0.4717643, 0.4622560, 0.4527838, 0.4434201,
                               0.4341649, 0.4251988, 0.4164859, 0.4081706, 0.4002169, 0.3926970, 0.3855748,
                               0.3789226, 0.3726320, 0.3664859, 0.3599783, 0.3504338, 0.3500000};
  const lpo::NoiseSchedule schedule;
  const auto by_sigma = pair_thresholds(schedule, 20, options_of(ThresholdMode::sigma, ThresholdTable::official20));
  const auto by_variance =
      pair_thresholds(schedule, 20, options_of(ThresholdMode::variance, ThresholdTable::official20));
  const auto by_time = pair_thresholds(schedule, 20, options_of(ThresholdMode::linear, ThresholdTable::official20));
  const auto sdxl =
      pair_thresholds(schedule, 20, options_of(ThresholdMode::sigma, ThresholdTable::official20, 0.45, 0.6));
  for (std::size_t i = 0; i < 20; ++i) {
    check_digits(by_sigma[i], sigma[i]);
    check_digits(by_variance[i], variance[i]);
    check_digits(by_time[i], 0.35 + 0.15 * (950.0 - 50.0 * static_cast<double>(i)) / 950);
    check_digits(sdxl[i], sigma[i] + 0.1);
  }
  check_digits(by_time[at(501)], 0.4289474);
}

TEST_CASE("the closed form") {
  const lpo::NoiseSchedule schedule;
  const auto th = pair_thresholds(schedule, 20);
  check_digits(th[at(1)], 0.35);
  check_digits(th[at(51)], 0.3547973);
  check_digits(th[at(101)], 0.3852661);
  check_digits(th[at(501)], 0.4482792);
  check_digits(th[at(751)], 0.4791321);
  check_digits(th[at(951)], 0.5);
  const auto ten = pair_thresholds(schedule, 10), fifty = pair_thresholds(schedule, 50);
  check_digits(ten[9 - 5], 0.4506295);
  check_digits(fifty[49 - 25], 0.4447880);
  const auto variance = pair_thresholds(schedule, 20, options_of(ThresholdMode::variance, ThresholdTable::closed_form));
  CHECK(std::fabs(variance[at(501)] - 0.4164859) < 6.5e-5);
}

TEST_CASE("constant, one step, and what is refused") {
  const lpo::NoiseSchedule schedule;
  ThresholdOptions options;
  options.mode = ThresholdMode::constant;
  options.constant = 0.3;
  for (const double th : pair_thresholds(schedule, 7, options)) CHECK(th == 0.3);
  CHECK(pair_thresholds(schedule, 1)[0] == 0.35);
  CHECK_THROWS_AS(
      pair_thresholds(schedule, 10, options_of(ThresholdMode::sigma, ThresholdTable::official20, 0.35, 0.3)),
      lpo::ValueError);
  CHECK_THROWS_AS(pair_thresholds(schedule, 50, options_of(ThresholdMode::sigma, ThresholdTable::official20)),
                  lpo::ValueError);
}

TEST_CASE("score differences that the thresholds ask for") {
  check_digits(2 * std::atanh(0.35), 0.7308875);
  check_digits(2 * std::atanh(0.5), 1.0986123);
}

TEST_CASE("calibrated thresholds: the line through the quantiles of gaps that grow with the measure") {
  std::vector<std::vector<float>> gaps;
  const std::vector<double> shares{0.0, 0.25, 0.5, 1.0};
  for (const double share : shares) {  // uniform on [0, 0.2 + 0.4 share]: the 60 % quantile is 0.12 + 0.24 share
    gaps.emplace_back();
    for (int i = 0; i <= 1000; ++i) gaps.back().push_back(static_cast<float>((0.2 + 0.4 * share) * i / 1000));
  }
  const auto options = lpo::calibrated_thresholds(shares, gaps, 0.6);
  CHECK(options.minimum == doctest::Approx(0.12).epsilon(1e-6));
  CHECK(options.maximum == doctest::Approx(0.36).epsilon(1e-6));
  CHECK_THROWS_AS(lpo::calibrated_thresholds(shares, gaps, 1.5), lpo::ValueError);
  CHECK_THROWS_AS(lpo::calibrated_thresholds(std::vector<double>{0.5}, {{0.1f}}, 0.5), lpo::ValueError);
}
