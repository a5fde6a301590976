// SPDX-License-Identifier: MIT
// Paired evaluation: hand-computed win rates and accuracies, the bootstrap against the normal interval, diversity.
#include "../../examples/tinyworld/world/evaluate.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace tinyworld;

namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

Measurement measured(float score, float shape, float colour) {
  Measurement m{};
  m.score = score;
  m.aesthetic = 10 * score;
  m.hard.fill(kNone);
  m.hard[0] = shape;
  m.hard[1] = colour;
  m.accuracy = std::isnan(colour) ? shape : 0.5f * (shape + colour);
  return m;
}

}  // namespace

TEST_CASE("evaluate counts wins, halves ties and averages accuracies") {
  CaptionOutcome first{
      "one", {measured(0.5f, 1, 0), measured(0.4f, 0, 0)}, {measured(0.7f, 1, 1), measured(0.3f, 1, 0)}, 0.2, 0.1};
  CaptionOutcome second{"two",
                        {measured(0.6f, 0, kNone), measured(0.2f, 1, kNone)},
                        {measured(0.602f, 1, kNone), measured(0.9f, 1, kNone)},
                        0.4,
                        0.5};
  const EvaluationReport report = evaluate({first, second});
  CHECK(report.captions == 2);
  CHECK(report.pictures == 4);
  CHECK(report.win_rate == doctest::Approx((0.5 + 0.75) / 2));
  CHECK(report.score_before == doctest::Approx(1.7 / 4));
  CHECK(report.score_after == doctest::Approx(2.502 / 4));
  CHECK(report.accuracy_before[0] == doctest::Approx(0.5));
  CHECK(report.accuracy_after[0] == doctest::Approx(1.0));
  CHECK(report.accuracy_before[1] == doctest::Approx(0.0));
  CHECK(report.accuracy_after[1] == doctest::Approx(0.5));
  CHECK(std::isnan(report.accuracy_before[2]));
  CHECK(report.attribute_accuracy_before == doctest::Approx((0.5 + 0 + 0 + 1) / 4));
  CHECK(report.attribute_accuracy_after == doctest::Approx((1 + 0.5 + 1 + 1) / 4));
  CHECK(report.diversity_ratio == doctest::Approx(1.0));
  CHECK(report.win_rate_ci95.low >= 0.5);
  CHECK(report.win_rate_ci95.high <= 0.75);
  first.after.pop_back();
  CHECK_THROWS_AS(evaluate({first, second}), std::invalid_argument);
  CHECK(evaluate({}).captions == 0);
}

TEST_CASE("the bootstrap interval of a mean agrees with the normal approximation") {
  lpo::RandomStream random(6);
  std::vector<double> values(400);
  double mean = 0, square = 0;
  for (double& v : values) v = 0.7 + 0.2 * static_cast<double>(random.normal());
  for (const double v : values) mean += v / 400;
  for (const double v : values) square += (v - mean) * (v - mean) / 400;
  const double half = 1.96 * std::sqrt(square / 400);
  const Interval interval = bootstrap_mean(values, 4000, 9);
  CHECK(interval.low == doctest::Approx(mean - half).epsilon(0.005));
  CHECK(interval.high == doctest::Approx(mean + half).epsilon(0.005));
  const Interval again = bootstrap_mean(values, 4000, 9);
  CHECK(interval.low == again.low);
  CHECK(std::isnan(bootstrap_mean({}, 100, 0).low));
}

TEST_CASE("mean_pairwise_distance is the mean RMS difference") {
  Image a, b, c;
  for (float& v : a.rgb) v = 0.0f;
  for (float& v : b.rgb) v = 0.5f;
  for (float& v : c.rgb) v = 1.0f;
  CHECK(mean_pairwise_distance({a, b}) == doctest::Approx(0.5));
  CHECK(mean_pairwise_distance({a, b, c}) == doctest::Approx((0.5 + 1.0 + 0.5) / 3));
  CHECK(mean_pairwise_distance({a}) == 0.0);
}
