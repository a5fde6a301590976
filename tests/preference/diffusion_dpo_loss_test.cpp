// SPDX-License-Identifier: MIT
// The Diffusion-DPO loss against a published value, PyTorch and finite differences.
#include <lpo/preference/diffusion_dpo_loss.hpp>

#include <doctest/doctest.h>

#include <cmath>

#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/random.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include "golden_file.hpp"

using lpo::Extents;
using lpo::Reference;
using Latents = lpo::Tensor<double, 4, Reference>;

namespace {

double loss_of(lpo::Context<Reference>& context, const Latents& policy, const Latents& reference, const Latents& target,
               double beta) {
  lpo::Tape<Reference> tape(context);
  auto copy = policy.clone();
  return lpo::item(lpo::diffusion_dpo_loss(lpo::variable(tape, copy), reference, target, beta));
}

}  // namespace

TEST_CASE("errors 0.100 and 0.120 against 0.101 and 0.119: argument 5, loss 0.0067153") {
  lpo::Context<Reference> context(1);
  const Extents<4> extents{2, 1, 1, 3};
  const auto rows = [&](double win, double lose) {
    Latents tensor(extents);
    for (int i = 0; i < 3; ++i) tensor.data()[i] = std::sqrt(win), tensor.data()[3 + i] = -std::sqrt(lose);
    return tensor;
  };
  const double loss = loss_of(context, rows(0.100, 0.120), rows(0.101, 0.119), Latents::zeros(extents), 5000);
  CHECK(std::fabs(loss - 0.0067153) < 5.1e-8);
  CHECK(std::fabs(loss - std::log1p(std::exp(-5.0))) < 1e-12);
}

TEST_CASE("metrics are means over pairs: losses of the arguments 5 and -5, one of the two preferred") {
  lpo::Context<Reference> context(1);
  const Extents<4> extents{4, 1, 1, 1};
  Latents policy(extents), reference(extents);
  const double errors[2][4] = {{0.100, 0.101, 0.120, 0.119}, {0.101, 0.100, 0.119, 0.120}};
  for (int i = 0; i < 4; ++i)
    policy.data()[i] = std::sqrt(errors[0][i]), reference.data()[i] = std::sqrt(errors[1][i]);
  lpo::Tape<Reference> tape(context);
  lpo::DiffusionDpoMetrics metrics;
  lpo::diffusion_dpo_loss(lpo::variable(tape, policy), reference, Latents::zeros(extents), 5000, &metrics);
  CHECK(metrics.pairs == 2);
  CHECK(metrics.implicit_accuracy == 0.5);
  CHECK(std::fabs(metrics.loss - (std::log1p(std::exp(-5.0)) + std::log1p(std::exp(5.0))) / 2) < 1e-10);
}

TEST_CASE("gradient against finite differences") {
  lpo::Context<Reference> context(1);
  const Extents<4> extents{4, 2, 1, 3};
  Latents policy(extents), reference(extents), target(extents);
  std::uint32_t field = 0;
  for (Latents* tensor : {&policy, &reference, &target})
    lpo::kernel::RandomNormal<Reference>::fill(context, 24, tensor->data(), 0.0f, 1.0f, 5, 0, field++, 0);
  lpo::Tape<Reference> tape(context);
  const auto y = lpo::variable(tape, policy);
  lpo::backward(lpo::diffusion_dpo_loss(y, reference, target, 0.7));
  const auto gradient = lpo::read_gradient(y);
  for (int i = 0; i < 24; ++i) {
    const double h = 1e-6;
    auto plus = policy.clone(), minus = policy.clone();
    plus.data()[i] += h;
    minus.data()[i] -= h;
    const double slope =
        (loss_of(context, plus, reference, target, 0.7) - loss_of(context, minus, reference, target, 0.7)) / (2 * h);
    CHECK(std::fabs(gradient.data()[i] - slope) < 1e-8);
  }
  const Latents odd(Extents<4>{3, 2, 1, 3});
  auto three = odd.clone();
  CHECK_THROWS_AS(lpo::diffusion_dpo_loss(lpo::variable(tape, three), odd, odd), lpo::ShapeError);
}

TEST_CASE("loss, arguments and gradient equal PyTorch's") {
  const auto file = golden::open("dpo_loss");
  lpo::Context<Reference> context(1);
  lpo::Tape<Reference> tape(context);
  // In the file's layout throughout: every element counts alike.
  const auto read = [&](const char* name) { return golden::tensor<double, 4, Reference>(file, name, false); };
  const auto reference = read("in/reference"), target = read("in/target");
  auto prediction = read("in/prediction");
  const auto y = lpo::variable(tape, prediction);
  lpo::DiffusionDpoMetrics metrics;
  const auto loss = lpo::diffusion_dpo_loss(y, reference, target, 20, &metrics);
  golden::check_value(file, "out/loss", loss, 2e-7);
  double mean = 0, preferred = 0;
  for (const float inside : file.read_vector<float>("out/inside")) mean += inside / 3.0, preferred += inside > 0;
  CHECK(metrics.margin == doctest::Approx(mean).epsilon(1e-6));
  CHECK(metrics.implicit_accuracy == doctest::Approx(preferred / 3));
  lpo::backward(loss);
  const auto gradient = lpo::read_gradient(y);
  const auto truth = file.read_vector<float>("grad/prediction");
  CHECK(golden::relative_error(gradient.data(), truth.data(), gradient.size()) < 2e-7);
}
