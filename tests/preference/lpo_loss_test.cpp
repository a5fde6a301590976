// SPDX-License-Identifier: MIT
// The differentiable LPO loss: finite differences, the analytic gradient, PyTorch's numbers, and exact zeros.
#include <lpo/preference/lpo_loss.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/random.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/diffusion/ddim.hpp>
#include <lpo/diffusion/guidance.hpp>
#include <lpo/diffusion/sample.hpp>
#include <lpo/io/safetensors.hpp>

using lpo::Extents;
using lpo::GaussianStep;
using lpo::Reference;
using Latents = lpo::Tensor<double, 4, Reference>;

namespace {

/// Three pairs of 24 elements at t = 951, 501, 51.
struct Batch {
  lpo::Context<Reference> context{1};
  Extents<4> extents{3, 2, 3, 4};
  std::vector<GaussianStep> steps;
  Latents policy{extents}, reference{extents}, x_t{extents}, x_win{extents}, x_lose{extents};

  /// `distance` separates policy and reference.
  explicit Batch(double distance) {
    const lpo::NoiseSchedule schedule;
    for (const int t : {951, 501, 51}) steps.push_back(lpo::ddim_step(schedule, t, 50, 1.0));
    std::uint32_t field = 0;
    for (Latents* tensor : {&policy, &reference, &x_t, &x_win, &x_lose})
      fill_normal(context, tensor->view(), {11, 1, field++});
    for (lpo::index_t i = 0; i < policy.size(); ++i) {
      const auto& step = steps[static_cast<std::size_t>(i / 24)];
      policy.data()[i] = reference.data()[i] + distance * policy.data()[i];
      const double mean = step.a * x_t.data()[i] + step.c * reference.data()[i];
      x_win.data()[i] = mean + step.sigma * x_win.data()[i];
      x_lose.data()[i] = mean + step.sigma * x_lose.data()[i];
    }
  }

  double loss(const Latents& prediction, const lpo::LpoLossOptions& options, std::span<lpo::LpoPairTerms> pairs = {}) {
    lpo::Tape<Reference> tape(context);
    auto copy = prediction.clone();
    return lpo::item(
        lpo::lpo_loss(lpo::variable(tape, copy), reference, x_t, x_win, x_lose, steps, options, nullptr, pairs));
  }

  Latents gradient(const lpo::LpoLossOptions& options, std::vector<lpo::LpoPairTerms>& pairs) {
    lpo::Tape<Reference> tape(context);
    const auto y = lpo::variable(tape, policy);
    pairs.resize(3);
    const auto value = lpo::lpo_loss(y, reference, x_t, x_win, x_lose, steps, options, nullptr, pairs);
    lpo::backward(value);
    return lpo::read_gradient(y);
  }
};

void check_finite_differences(Batch& batch, const lpo::LpoLossOptions& options) {
  std::vector<lpo::LpoPairTerms> pairs;
  const auto gradient = batch.gradient(options, pairs);
  double difference = 0, norm = 0;
  for (lpo::index_t i = 0; i < batch.policy.size(); ++i) {
    const double h = 1e-6;
    auto plus = batch.policy.clone(), minus = batch.policy.clone();
    plus.data()[i] += h;
    minus.data()[i] -= h;
    const double slope = (batch.loss(plus, options) - batch.loss(minus, options)) / (2 * h);
    difference += std::pow(slope - gradient.data()[i], 2);
    norm += slope * slope;
  }
  CHECK(std::sqrt(difference) <= 1e-7 * std::sqrt(norm));
}

}  // namespace

TEST_CASE("gradient against finite differences in double: no ratio clipped, then some of them") {
  Batch close(2e-4);
  check_finite_differences(close, {500, 0.1});
  Batch apart(0.05);
  std::vector<lpo::LpoPairTerms> pairs;
  apart.gradient({20, 0.01}, pairs);
  bool win_only = false, lose_only = false;
  for (const auto& pair : pairs) {
    win_only = win_only || (!pair.win_clipped && pair.lose_clipped);
    lose_only = lose_only || (pair.win_clipped && !pair.lose_clipped);
  }
  CHECK((win_only || lose_only));
  check_finite_differences(apart, {20, 0.01});
}

TEST_CASE("gradient against the analytic form of both-unclipped, win-only, lose-only and clipped pairs") {
  int seen[4] = {};
  for (const double distance : {2e-4, 0.02, 0.05, 0.3}) {
    Batch batch(distance);
    const lpo::LpoLossOptions options{20, 0.01};
    std::vector<lpo::LpoPairTerms> pairs;
    const auto gradient = batch.gradient(options, pairs);
    double difference = 0, norm = 0;
    for (lpo::index_t i = 0; i < gradient.size(); ++i) {
      const auto& step = batch.steps[static_cast<std::size_t>(i / 24)];
      const auto& pair = pairs[static_cast<std::size_t>(i / 24)];
      const double mu = step.a * batch.x_t.data()[i] + step.c * batch.policy.data()[i];
      const double win = batch.x_win.data()[i], lose = batch.x_lose.data()[i];
      const double toward =
          pair.win_clipped ? (pair.lose_clipped ? 0.0 : -(lose - mu)) : (pair.lose_clipped ? win - mu : win - lose);
      const double sigmoid = 1 / (1 + std::exp(pair.argument));
      const double expected = -(20.0 / 3) * sigmoid * step.c / (24 * step.sigma * step.sigma) * toward;
      if (i % 24 == 0) ++seen[2 * pair.win_clipped + pair.lose_clipped];
      difference += std::pow(gradient.data()[i] - expected, 2);
      norm += expected * expected;
    }
    CHECK(std::sqrt(difference) <= 1e-12 * std::sqrt(norm) + 1e-300);
  }
  CHECK(seen[0] > 0);
  CHECK(seen[1] + seen[2] > 0);
  CHECK(seen[3] > 0);
}

TEST_CASE("equal predictions give Delta 0 exactly, loss ln 2, and log densities of the drawn noise") {
  Batch batch(0.0);
  std::vector<lpo::LpoPairTerms> pairs(3);
  CHECK(batch.loss(batch.policy, {}, pairs) == std::log(2.0));
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(pairs[i].delta_win == 0);
    CHECK(pairs[i].delta_lose == 0);
    const auto& step = batch.steps[i];
    double squares = 0;
    for (std::size_t j = 24 * i; j < 24 * i + 24; ++j)
      squares += std::pow(batch.x_win.data()[j] - step.a * batch.x_t.data()[j] - step.c * batch.reference.data()[j], 2);
    CHECK(pairs[i].log_density_win ==
          doctest::Approx(-squares / 24 / (2 * step.sigma * step.sigma) - std::log(step.sigma) - 0.9189385332));
  }
}

TEST_CASE("predictions of their own for win and lose: the same numbers, and each gets its part of the gradient") {
  int clipped = 0;
  for (const double distance : {2e-4, 0.05}) {
    Batch batch(distance);
    const lpo::LpoLossOptions options{20, 0.01};
    std::vector<lpo::LpoPairTerms> pairs, twice(3);
    const auto expected = batch.gradient(options, pairs);
    const auto doubled = [](const Latents& rows) {
      Latents both(Extents<4>{6, 2, 3, 4});
      for (lpo::index_t i = 0; i < 144; ++i) both.data()[i] = rows.data()[i % 72];
      return both;
    };
    auto policy = doubled(batch.policy);
    const auto reference = doubled(batch.reference);
    lpo::Tape<Reference> tape(batch.context);
    const auto y = lpo::variable(tape, policy);
    const auto loss = lpo::lpo_loss(y, reference, batch.x_t, batch.x_win, batch.x_lose, batch.steps, options, nullptr, twice);
    CHECK(lpo::item(loss) == batch.loss(batch.policy, options));
    lpo::backward(loss);
    const auto gradient = lpo::read_gradient(y);
    for (lpo::index_t i = 0; i < 72; ++i) {
      const auto& pair = twice[static_cast<std::size_t>(i / 24)];
      const double win = gradient.data()[i], lose = gradient.data()[72 + i];
      CHECK(win + lose == doctest::Approx(expected.data()[i]).epsilon(1e-9));
      CHECK((win == 0) == pair.win_clipped);
      CHECK((lose == 0) == pair.lose_clipped);
      clipped += pair.win_clipped + pair.lose_clipped;
    }
    // The other prediction does not matter: only lose's Delta follows its rows.
    policy.data()[72] += 0.1;
    lpo::Tape<Reference> again(batch.context);
    std::vector<lpo::LpoPairTerms> moved(3);
    lpo::lpo_loss(lpo::variable(again, policy), reference, batch.x_t, batch.x_win, batch.x_lose, batch.steps, options, nullptr,
                  moved);
    CHECK(moved[0].delta_win == twice[0].delta_win);
    CHECK(moved[0].delta_lose != twice[0].delta_lose);
    CHECK(moved[1].delta_lose == twice[1].delta_lose);
  }
  CHECK(clipped > 0);
}

TEST_CASE("swapping win and lose changes the sign of the argument") {
  Batch batch(0.01), swapped(0.01);
  std::swap(swapped.x_win, swapped.x_lose);
  std::vector<lpo::LpoPairTerms> one(3), other(3);
  batch.loss(batch.policy, {}, one);
  swapped.loss(swapped.policy, {}, other);
  for (std::size_t i = 0; i < 3; ++i) CHECK(one[i].argument == -other[i].argument);
}

TEST_CASE("unclipped, the argument is linear in the network output") {
  Batch batch(1e-3);
  std::vector<lpo::LpoPairTerms> pairs(3);
  batch.loss(batch.policy, {}, pairs);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto& step = batch.steps[i];
    double sum = 0;
    for (std::size_t j = 24 * i; j < 24 * i + 24; ++j)
      sum += (batch.x_win.data()[j] - batch.x_lose.data()[j]) * step.c *
             (batch.policy.data()[j] - batch.reference.data()[j]);
    CHECK(pairs[i].argument == doctest::Approx(500 * sum / (24 * step.sigma * step.sigma)));
  }
}

TEST_CASE("loss, terms and gradient of PyTorch in float") {
  const lpo::SafetensorsFile golden(std::string(LPO_TEST_GOLDEN_DIR) + "/lpo_loss.safetensors");
  using Floats = lpo::Tensor<float, 4, Reference>;
  const Extents<4> extents{5, 4, 8, 24};
  const auto read = [&](const char* key) { return Floats::from(extents, golden.read_vector<float>(key)); };
  auto policy = read("out/eps");
  const auto reference = read("out/eps_ref"), x_t = read("in/x_t"), x_win = read("in/x_win"),
             x_lose = read("in/x_lose");
  const auto timesteps = golden.read_vector<int>("in/timestep");
  const auto a = golden.read_vector<double>("in/coefficients/a"),
             sigma = golden.read_vector<double>("in/coefficients/sigma");
  std::vector<GaussianStep> steps;
  for (std::size_t i = 0; i < 5; ++i) {
    steps.push_back(lpo::ddim_step(lpo::NoiseSchedule(), timesteps[i], 50, 1.0));
    CHECK(std::fabs(steps[i].a - a[i]) < 1e-11);
    CHECK(std::fabs(steps[i].sigma - sigma[i]) < 1e-11);
  }
  lpo::Context<Reference> context(1);
  lpo::Tape<Reference> tape(context);
  const auto y = lpo::variable(tape, policy);
  lpo::LpoMetrics metrics;
  std::vector<lpo::LpoPairTerms> pairs(5);
  const auto loss = lpo::lpo_loss(y, reference, x_t, x_win, x_lose, steps, {500, 0.1}, &metrics, pairs);
  lpo::backward(loss);

  const auto near = [&](double value, const char* key, std::size_t i, double tolerance) {
    const double expected = static_cast<double>(golden.read_vector<float>(key)[i]);
    CAPTURE(key);
    CAPTURE(value);
    CAPTURE(expected);
    CHECK(std::fabs(value - expected) <= tolerance * std::max(1.0, std::fabs(expected)));
  };
  near(lpo::item(loss), "out/loss", 0, 1e-5);
  near(metrics.implicit_accuracy, "out/implicit_accuracy", 0, 1e-6);
  near(metrics.margin, "out/margin", 0, 1e-6);
  for (std::size_t i = 0; i < 5; ++i) {
    near(pairs[i].delta_win, "out/delta_win", i, 1e-6);
    near(pairs[i].delta_lose, "out/delta_lose", i, 1e-6);
    near(pairs[i].ratio_win, "out/ratio_win", i, 1e-6);
    near(pairs[i].ratio_lose, "out/ratio_lose", i, 1e-6);
    near(pairs[i].argument, "out/argument", i, 5e-5);
    near(pairs[i].loss, "out/losses", i, 5e-5);
  }
  const auto gradient = lpo::read_gradient(y);
  const auto expected = golden.read_vector<float>("grad/out/eps");
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(static_cast<double>(gradient.data()[i] - expected[i]), 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  CHECK(std::sqrt(difference) <= 1e-5 * std::sqrt(norm));
}

TEST_CASE("guided rows [u ; c] pass (1 - w) and w times the gradient") {
  Batch batch(2e-4);
  std::vector<lpo::LpoPairTerms> pairs;
  const auto direct = batch.gradient({}, pairs);
  // u + 5 (c - u) equals the policy's prediction when c = (policy + 4 u) / 5.
  Latents rows(Extents<4>{6, 2, 3, 4});
  for (lpo::index_t i = 0; i < 72; ++i) {
    rows.data()[i] = batch.x_lose.data()[i];
    rows.data()[72 + i] = (batch.policy.data()[i] + 4 * rows.data()[i]) / 5;
  }
  lpo::Tape<Reference> tape(batch.context);
  const auto network = lpo::variable(tape, rows);
  const lpo::Var y = lpo::guided_rows(network, 5.0);
  lpo::backward(lpo::lpo_loss(y, batch.reference, batch.x_t, batch.x_win, batch.x_lose, batch.steps));
  const auto gradient = lpo::read_gradient(network);
  for (lpo::index_t i = 0; i < 72; ++i) {
    CHECK(gradient.data()[i] == doctest::Approx(-4 * direct.data()[i]).epsilon(1e-9));
    CHECK(gradient.data()[72 + i] == doctest::Approx(5 * direct.data()[i]).epsilon(1e-9));
  }
}

TEST_CASE("wrong shapes and deterministic steps are refused") {
  Batch batch(0.01);
  lpo::Tape<Reference> tape(batch.context);
  const auto y = lpo::variable(tape, batch.policy);
  const Latents small(Extents<4>{2, 2, 3, 4});
  const auto call = [&](const Latents& reference, std::span<const GaussianStep> steps) {
    lpo::lpo_loss(y, reference, batch.x_t, batch.x_win, batch.x_lose, steps);
  };
  CHECK_THROWS_AS(call(small, batch.steps), lpo::ShapeError);
  CHECK_THROWS_AS(call(batch.reference, std::span(batch.steps).first(2)), lpo::ShapeError);
  for (const double beta : {0.0, -500.0, std::nan("")})
    CHECK_THROWS_AS(lpo::lpo_loss(y, batch.reference, batch.x_t, batch.x_win, batch.x_lose, batch.steps, {.beta = beta}), lpo::ValueError);
  batch.steps[1].sigma = 0;
  CHECK_THROWS_AS(call(batch.reference, batch.steps), lpo::ValueError);
}

TEST_CASE("on the CPU in float the loss and its gradient agree with the oracle, for any number of threads") {
  Batch batch(2e-3);
  std::vector<lpo::LpoPairTerms> pairs;
  const auto expected = batch.gradient({}, pairs);
  const double expected_loss = batch.loss(batch.policy, {});
  const auto run = [&](int threads) {
    lpo::Context<lpo::Cpu> context(threads);
    const auto copy = [&](const Latents& tensor) {
      return lpo::Tensor<float, 4, lpo::Cpu>::from(batch.extents, tensor.span());
    };
    auto policy = copy(batch.policy);
    const auto reference = copy(batch.reference), x_t = copy(batch.x_t), win = copy(batch.x_win),
               lose = copy(batch.x_lose);
    lpo::Tape<lpo::Cpu> tape(context);
    const auto y = lpo::variable(tape, policy);
    const auto loss = lpo::lpo_loss(y, reference, x_t, win, lose, batch.steps);
    CHECK(lpo::item(loss) == doctest::Approx(expected_loss).epsilon(1e-4));
    lpo::backward(loss);
    return lpo::read_gradient(y);
  };
  const auto one = run(1), three = run(3);
  double difference = 0, norm = 0;
  for (lpo::index_t i = 0; i < one.size(); ++i) {
    CHECK(one.data()[i] == three.data()[i]);
    difference += std::pow(static_cast<double>(one.data()[i]) - expected.data()[i], 2);
    norm += std::pow(expected.data()[i], 2);
  }
  CHECK(std::sqrt(difference) <= 1e-4 * std::sqrt(norm));
}
