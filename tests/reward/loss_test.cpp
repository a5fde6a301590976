// SPDX-License-Identifier: MIT
// Reward losses against numbers computed with NumPy in double precision, and finite differences.
#include <doctest/doctest.h>

#include <cmath>

#include "../model/model_backends.hpp"

#include <lpo/backend/cpu/cross_entropy.hpp>
#include <lpo/backend/reference/cross_entropy.hpp>
#include <lpo/base/philox.hpp>
#include <lpo/reward/loss.hpp>
#include <lpo/testing/random_tensor.hpp>

using namespace lpo;

namespace {
using Double = Tensor<double, 2, Reference>;

/// Unit vectors whose cosines with two texts are prescribed: image j is (cos0, cos1, rest) in a basis with the texts first.
Double images_with(const std::vector<std::pair<double, double>>& cosines) {
  Double out(Extents<2>{static_cast<index_t>(cosines.size()), 3});
  for (std::size_t i = 0; i < cosines.size(); ++i) {
    const auto [a, b] = cosines[i];
    out(i, 0) = a, out(i, 1) = b, out(i, 2) = std::sqrt(1 - a * a - b * b);
  }
  return out;
}
}  // namespace

TEST_CASE("pair losses, weights and total") {
  const double s = std::exp(2.6592);
  const std::vector<PreferenceLabel> labels{{1, 0, 1}, {0.5f, 0.5f, 4}, {1, 0, 2}};
  Context<Reference> context;
  Tape<Reference> tape(context);
  const auto z0 = Tensor<double, 1, Reference>::from(Extents<1>{3}, std::vector<double>{.30 * s, .20 * s, .10 * s});
  const auto z1 = Tensor<double, 1, Reference>::from(Extents<1>{3}, std::vector<double>{.25 * s, .28 * s, .22 * s});
  const auto losses = pair_losses(constant(tape, z0), constant(tape, z1), labels);
  const double expected[] = {0.3984826, 0.1550667, 1.8797912};
  for (index_t i = 0; i < 3; ++i) CHECK(losses.view()(i) == doctest::Approx(expected[i]).epsilon(1e-6));
  const auto weights = pair_weights(labels);
  CHECK(weights[0] == doctest::Approx(4.0 / 7));
  CHECK(weights[1] == doctest::Approx(1.0 / 7));
  CHECK(weights[2] == doctest::Approx(2.0 / 7));
  double total = 0;
  for (index_t i = 0; i < 3; ++i) total += static_cast<double>(weights[static_cast<std::size_t>(i)]) * losses.view()(i);
  CHECK(total == doctest::Approx(0.7869399).epsilon(1e-6));
}

TEST_CASE("batch losses of two examples") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto text = Double::zeros(Extents<2>{2, 3});
  text(0, 0) = text(1, 1) = 1;
  // (text 0, text 1) cosines of img0_0, img1_0 and of img0_1, img1_1
  auto first = images_with({{.30, .08}, {.25, .11}}), second = images_with({{.12, .20}, {.05, .28}});
  const std::vector<PreferenceLabel> labels{{1, 0, 1}, {0.5f, 0.5f, 1}};
  auto scale = Tensor<double, 1, Reference>::full(Extents<1>{1}, 2.6592);
  // The vector names images img<which>_<example>: example 0 is (img0_0, img1_0), example 1 is (img0_1, img1_1).
  auto visual_0 = Double(Extents<2>{2, 3}), visual_1 = Double(Extents<2>{2, 3});
  for (index_t c = 0; c < 3; ++c) {
    visual_0(0, c) = first(0, c), visual_0(1, c) = second(0, c);
    visual_1(0, c) = first(1, c), visual_1(1, c) = second(1, c);
  }
  const auto losses = batch_losses(constant(tape, visual_0), constant(tape, visual_1), constant(tape, text), constant(tape, scale), labels);
  CHECK(losses.view()(0) == doctest::Approx(0.2542925).epsilon(1e-6));
  CHECK(losses.view()(1) == doctest::Approx(0.2082858).epsilon(1e-6));
  const auto loss = reward_loss(constant(tape, visual_0), constant(tape, visual_1), constant(tape, text), constant(tape, scale), labels,
                                {.kind = RewardLossOptions::Kind::batch});
  CHECK(item(loss) == doctest::Approx(0.2312892).epsilon(1e-6));
}

TEST_CASE("pair, batch and both losses have the gradients that finite differences give") {
  RandomStream random(7, 1, 0);
  const auto draw = [&](index_t rows) {
    Double x(Extents<2>{rows, 5});
    for (double& v : x.span()) v = static_cast<double>(random.normal());
    return x;
  };
  auto a = draw(3), b = draw(3), q = draw(3);
  auto scale = Tensor<double, 1, Reference>::full(Extents<1>{1}, 1.3);
  const std::vector<PreferenceLabel> labels{{1, 0, 1}, {0.5f, 0.5f, 4}, {0, 1, 2, true}};
  for (const auto kind : {RewardLossOptions::Kind::pair, RewardLossOptions::Kind::batch, RewardLossOptions::Kind::both}) {
    const RewardLossOptions options{kind, 0.7f, 1.5f};
    Context<Reference> context;
    Tape<Reference> tape(context);
    const auto evaluate_at = [&] {
      const auto guard = tape.inference();
      const double value = item(reward_loss(constant(tape, a), constant(tape, b), constant(tape, q), constant(tape, scale), labels, options));
      tape.clear();
      return value;
    };
    const auto va = variable(tape, a), vb = variable(tape, b), vq = variable(tape, q);
    const auto vs = variable(tape, scale);
    backward(reward_loss(va, vb, vq, vs, labels, options));
    const auto ga = read_gradient(va), gb = read_gradient(vb), gq = read_gradient(vq);
    const auto gs = read_gradient(vs);
    tape.clear();
    const auto compare = [&](double* x, double analytic) {
      const double kept = *x, h = 1e-5;
      *x = kept + h;
      const double above = evaluate_at();
      *x = kept - h;
      const double below = evaluate_at();
      *x = kept;
      CHECK(analytic == doctest::Approx((above - below) / (2 * h)).epsilon(1e-6));
    };
    for (index_t i = 0; i < a.size(); ++i) {
      compare(a.data() + i, ga.data()[i]);
      compare(b.data() + i, gb.data()[i]);
      compare(q.data() + i, gq.data()[i]);
    }
    compare(scale.data(), gs.data()[0]);
  }
}

TEST_CASE("of 16-bit features the loss is that of the rounded numbers in float") {
  using testing::converted, testing::random_tensor;
  auto a = random_tensor<bfloat16, Reference>(Extents<2>{3, 5}, 1), b = random_tensor<bfloat16, Reference>(Extents<2>{3, 5}, 2),
       q = random_tensor<bfloat16, Reference>(Extents<2>{3, 5}, 3);
  const auto scale = Tensor<bfloat16, 1, Reference>::full(Extents<1>{1}, 1.25);
  auto da = converted<double, Reference>(a);
  const auto db = converted<double, Reference>(b), dq = converted<double, Reference>(q);
  const auto ds = converted<double, Reference>(scale);
  const std::vector<PreferenceLabel> labels{{1, 0, 1}, {0.5f, 0.5f, 4}, {0, 1, 2, true}};
  Context<Reference> context;
  Tape<Reference> tape(context);
  for (const auto kind : {RewardLossOptions::Kind::pair, RewardLossOptions::Kind::batch, RewardLossOptions::Kind::both}) {
    const RewardLossOptions options{kind, 0.7f, 1.5f};
    const auto y = variable(tape, da);
    const auto expected = reward_loss(y, constant(tape, db), constant(tape, dq), constant(tape, ds), labels, options);
    const double value = item(expected);
    backward(expected);
    const auto x = variable(tape, a);
    const Var<float, 1, Reference> loss = reward_loss(x, constant(tape, b), constant(tape, q), constant(tape, scale), labels, options);
    CHECK(item(loss) == doctest::Approx(value).epsilon(1e-6));
    backward(loss);
    const auto found = read_gradient(x);
    const auto truth = read_gradient(y);
    for (index_t k = 0; k < 15; ++k)
      CHECK(static_cast<double>(static_cast<float>(found.data()[k])) == doctest::Approx(truth.data()[k]).epsilon(1e-2));
    tape.clear();
  }
}

TEST_CASE("accuracy counts ties half for a strict order and nothing for equal scores") {
  const std::vector<PreferenceLabel> labels{{1, 0}, {0, 1}, {0.5f, 0.5f}, {0.5f, 0.5f}};
  const std::vector<float> first{2, 2, 1, 1}, second{1, 1, 0, 1};
  CHECK(pair_accuracy(first, second, labels) == doctest::Approx((1 + 0 + 0.5 + 0) / 4.0));
}

TEST_CASE("labels and weights are checked") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  const auto z = Tensor<double, 1, Reference>::zeros(Extents<1>{2});
  const std::vector<PreferenceLabel> one{{1, 0}};
  CHECK_THROWS_AS(pair_losses(constant(tape, z), constant(tape, z), one), ShapeError);
  CHECK_THROWS_AS(pair_weights(std::vector<PreferenceLabel>{{1, 0, 0}}), ValueError);
  CHECK_THROWS_AS(pair_accuracy(std::vector<float>{1, 2}, std::vector<float>{1}, one), ShapeError);
  CHECK_THROWS_AS(pair_accuracy(std::vector<float>{1}, std::vector<float>{}, one), ShapeError);
  CHECK(pair_accuracy({}, {}, {}) == 0);
}
