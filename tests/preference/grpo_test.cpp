// SPDX-License-Identifier: MIT
// Group advantages against published values; the GRPO loss against its formula in plain loops and finite differences.
#include <lpo/preference/grpo.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/random.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/diffusion/ddim.hpp>

#include "golden_file.hpp"

using lpo::Extents;
using lpo::Reference;
using Latents = lpo::Tensor<double, 4, Reference>;

namespace {

void check_digits(double value, double expected) {
  CAPTURE(value);
  CAPTURE(expected);
  CHECK(std::fabs(value - expected) < 4e-7);  // the scores are floats
}

/// Two prompts (t = 801, 301), three candidates each, twelve elements.
struct Group {
  lpo::Context<Reference> context{1};
  Extents<4> extents{2, 1, 3, 4};
  std::vector<lpo::GaussianStep> steps;
  std::vector<double> advantages = {0.5, -1.0, 1.2, 0.3, -1.7, 0.7};
  Latents policy{extents}, old{extents}, reference{extents}, x_t{extents};
  lpo::Tensor<double, 5, Reference> candidates{Extents<5>{3, 2, 1, 3, 4}};

  Group() {
    for (const int t : {801, 301}) steps.push_back(lpo::ddim_step(lpo::NoiseSchedule(), t, 50, 1.0));
    std::uint32_t field = 0;
    const auto fill = [&](double* data, lpo::index_t count) {
      lpo::kernel::RandomNormal<Reference>::fill(context, count, data, 0.0f, 1.0f, 9, 0, field++, 0);
    };
    for (Latents* tensor : {&policy, &old, &reference, &x_t}) fill(tensor->data(), 24);
    fill(candidates.data(), 72);
    for (int i = 0; i < 24; ++i) {
      policy.data()[i] = old.data()[i] + 0.3 * policy.data()[i];
      reference.data()[i] = old.data()[i] + 0.2 * reference.data()[i];
    }
    for (int i = 0; i < 72; ++i) {
      const int j = i % 24;
      const auto& step = steps[static_cast<std::size_t>(j / 12)];
      candidates.data()[i] = step.a * x_t.data()[j] + step.c * old.data()[j] + step.sigma * candidates.data()[i];
    }
  }

  double loss(const Latents& prediction, const lpo::GrpoOptions& options) {
    lpo::Tape<Reference> tape(context);
    auto copy = prediction.clone();
    return lpo::item(
        lpo::grpo_loss(lpo::variable(tape, copy), old, reference, x_t, candidates, steps, advantages, options));
  }

  /// The formula, from log-probabilities.
  double expected(const lpo::GrpoOptions& options) const {
    double total = 0;
    for (std::size_t row = 0; row < 6; ++row) {
      const std::size_t b = row % 2;
      const auto& step = steps[b];
      double ratio = 0, divergence = 0;
      for (std::size_t i = 0; i < 12; ++i) {
        const std::size_t j = 12 * b + i;
        const auto mean = [&](const Latents& y) { return step.a * x_t.data()[j] + step.c * y.data()[j]; };
        const double x = candidates.data()[12 * row + i], scale = 1 / (2 * step.sigma * step.sigma * 12);
        ratio += (std::pow(x - mean(old), 2) - std::pow(x - mean(policy), 2)) * scale;
        divergence += std::pow(mean(policy) - mean(reference), 2) * scale;
      }
      ratio = std::exp(ratio);
      const double limited = std::clamp(ratio, 1 - options.clip, 1 + options.clip);
      total -= std::min(ratio * advantages[row], limited * advantages[row]) - options.beta * divergence;
    }
    return total / 6;
  }
};

}  // namespace

TEST_CASE("advantages of four scores, population and sample deviation") {
  const std::vector<float> scores = {3.10f, 2.40f, 4.05f, 3.55f};
  const auto population = lpo::group_advantages(scores, 4);
  const auto sample = lpo::group_advantages(scores, 4, lpo::GroupDeviation::sample);
  const double by_population[] = {-0.2884300, -1.4421499, 1.2773328, 0.4532471};
  const double by_sample[] = {-0.2497877, -1.2489384, 1.1062026, 0.3925235};
  for (std::size_t k = 0; k < 4; ++k) {
    check_digits(population[k], by_population[k]);
    check_digits(sample[k], by_sample[k]);
  }
  const std::vector<float> two_prompts = {1, 5, 3, 5};  // K = 2, B = 2; the second prompt's scores are equal
  CHECK(lpo::group_advantages(two_prompts, 2) == std::vector<double>{-1, 0, 1, 0});
  // Equal scores, whose mean is not always equal to them.
  for (const int candidates : {2, 3, 5, 6, 7, 10})
    CHECK(lpo::group_advantages(std::vector<float>(20 * 21, 0.1f), candidates) == std::vector<double>(20 * 21, 0.0));
  CHECK_THROWS_AS(lpo::group_advantages(scores, 3), lpo::ValueError);
}

TEST_CASE("loss against the formula, and gradient against finite differences") {
  for (const auto& options : {lpo::GrpoOptions{0.1, 0.1}, lpo::GrpoOptions{0.3, 0.01}}) {
    Group group;
    CHECK(group.loss(group.policy, options) == doctest::Approx(group.expected(options)).epsilon(1e-12));
    lpo::Tape<Reference> tape(group.context);
    const auto y = lpo::variable(tape, group.policy);
    lpo::backward(lpo::grpo_loss(y, group.old, group.reference, group.x_t, group.candidates, group.steps,
                                 group.advantages, options));
    const auto gradient = lpo::read_gradient(y);
    for (int i = 0; i < 24; ++i) {
      const double h = 1e-6;
      auto plus = group.policy.clone(), minus = group.policy.clone();
      plus.data()[i] += h;
      minus.data()[i] -= h;
      const double slope = (group.loss(plus, options) - group.loss(minus, options)) / (2 * h);
      CHECK(std::fabs(gradient.data()[i] - slope) < 1e-8);
    }
  }
}

TEST_CASE("an unchanged policy has ratio 1: the loss is minus the mean advantage") {
  Group group;
  double mean = 0;
  for (const double advantage : group.advantages) mean += advantage / 6;
  CHECK(group.loss(group.old, {0.0, 0.1}) == doctest::Approx(-mean));
}

TEST_CASE("loss, ratios, advantages and gradient equal PyTorch's") {
  const auto file = golden::open("grpo_loss");
  lpo::Context<Reference> context(1);
  lpo::Tape<Reference> tape(context);
  // In the file's layout throughout: every element counts alike.
  const auto read = [&](const char* name) { return golden::tensor<double, 4, Reference>(file, name, false); };
  const auto old = read("in/old"), reference = read("in/reference"), x_t = read("in/x_t");
  auto prediction = read("in/prediction");
  const auto stacked = golden::tensor<double, 5, Reference>(file, "in/candidates");
  std::vector<lpo::GaussianStep> steps;
  for (const auto t : file.read_vector<std::int64_t>("in/timestep"))
    steps.push_back(lpo::ddim_step(lpo::NoiseSchedule(), static_cast<int>(t), 50, 1.0));
  const auto advantages = lpo::group_advantages(file.read_vector<float>("in/scores"), 3);
  const auto expected = file.read_vector<float>("out/advantage");
  for (std::size_t i = 0; i < expected.size(); ++i)
    CHECK(advantages[i] == doctest::Approx(static_cast<double>(expected[i])).epsilon(1e-6));
  const auto y = lpo::variable(tape, prediction);
  lpo::GrpoMetrics metrics;
  const auto loss = lpo::grpo_loss(y, old, reference, x_t, stacked, steps, advantages, {0.1, 0.1}, &metrics);
  golden::check_value(file, "out/loss", loss, 2e-7);
  CHECK(metrics.groups == 5);
  CHECK(metrics.loss == doctest::Approx(lpo::item(loss)).epsilon(1e-12));
  const auto ratios = file.read_vector<float>("out/ratio");
  double mean = 0, outside = 0;
  for (const float ratio : ratios) {
    mean += static_cast<double>(ratio) / 15;
    outside += ratio < 0.9f || ratio > 1.1f ? 1.0 / 15 : 0.0;
  }
  CHECK(metrics.ratio == doctest::Approx(mean).epsilon(1e-6));
  CHECK(metrics.clipped == doctest::Approx(outside).epsilon(1e-9));
  CHECK(outside > 0);
  CHECK(outside < 1);
  lpo::backward(loss);
  const auto gradient = lpo::read_gradient(y);
  const auto truth = file.read_vector<float>("grad/prediction");
  CHECK(golden::relative_error(gradient.data(), truth.data(), gradient.size()) < 2e-7);
}
