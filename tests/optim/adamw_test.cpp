// SPDX-License-Identifier: MIT
// AdamW against its closed form, an independent recursion in double, and an exact restart.
#include <lpo/optim/adamw.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include <lpo/backend/reference/adamw.hpp>
#include <lpo/backend/reference/elementwise.hpp>

using lpo::AdamW;
using lpo::ParameterSpan;
using lpo::Reference;

TEST_CASE("the first step moves by the learning rate against the gradient's sign, plus decoupled decay") {
  lpo::Context<Reference> context(1);
  double parameter[] = {1.0, -2.0}, gradient[] = {0.003, -40.0};
  AdamW<double, Reference> adamw(context, {{parameter, gradient, 2}}, {0.9, 0.999, 1e-8, 0.1});
  adamw.step(0.01);
  CHECK(parameter[0] == doctest::Approx(1.0 - 0.01 - 0.01 * 0.1 * 1.0).epsilon(1e-5));
  CHECK(parameter[1] == doctest::Approx(-2.0 + 0.01 + 0.01 * 0.1 * 2.0).epsilon(1e-5));
  CHECK(adamw.step_count() == 1);
}

TEST_CASE("many steps over several spans follow the recursion") {
  lpo::Context<Reference> context(1);
  std::vector<double> a = {0.5, -0.25, 2.0}, b = {1.5, 0.0}, ga(3), gb(2);
  const lpo::AdamWOptions options{0.9, 0.99, 1e-6, 0.02};
  AdamW<double, Reference> adamw(context, {{a.data(), ga.data(), 3}, {b.data(), gb.data(), 2}}, options);
  std::vector<double> p = {0.5, -0.25, 2.0, 1.5, 0.0}, m(5), v(5);
  for (int t = 1; t <= 30; ++t) {
    for (std::size_t i = 0; i < 5; ++i) {
      const double g = std::sin(0.7 * t + static_cast<double>(i)) * (1.0 + static_cast<double>(i));
      (i < 3 ? ga[i] : gb[i - 3]) = g / 0.25;
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.99 * v[i] + 0.01 * g * g;
      const double first = m[i] / (1 - std::pow(0.9, t)), second = v[i] / (1 - std::pow(0.99, t));
      p[i] -= 0.05 * (first / (std::sqrt(second) + 1e-6) + 0.02 * p[i]);
    }
    adamw.step(0.05, 0.25);
  }
  for (std::size_t i = 0; i < 5; ++i) CHECK(std::fabs((i < 3 ? a[i] : b[i - 3]) - p[i]) < 1e-5);
}

TEST_CASE("restoring moments and step count continues with the same bits") {
  lpo::Context<Reference> context(1);
  std::vector<float> gradient(4);
  const auto gradients_of = [&](int t) {
    for (int i = 0; i < 4; ++i) gradient[static_cast<std::size_t>(i)] = std::cos(static_cast<float>(t * 4 + i));
  };
  std::vector<float> whole = {1, 2, 3, 4};
  AdamW<float, Reference> uninterrupted(context, {{whole.data(), gradient.data(), 4}});
  for (int t = 0; t < 10; ++t) gradients_of(t), uninterrupted.step(1e-2);

  std::vector<float> parts = {1, 2, 3, 4};
  AdamW<float, Reference> before(context, {{parts.data(), gradient.data(), 4}});
  for (int t = 0; t < 6; ++t) gradients_of(t), before.step(1e-2);
  AdamW<float, Reference> after(context, {{parts.data(), gradient.data(), 4}});
  for (int i = 0; i < 4; ++i) {
    after.first_moment()(i) = before.first_moment()(i);
    after.second_moment()(i) = before.second_moment()(i);
  }
  after.set_step_count(before.step_count());
  for (int t = 6; t < 10; ++t) gradients_of(t), after.step(1e-2);
  CHECK(parts == whole);
}

TEST_CASE("masters of 16-bit parameters take updates that the parameters cannot show, until they add up") {
  lpo::Context<Reference> context(1);
  const auto one = static_cast<lpo::bfloat16>(1.0f), slope = static_cast<lpo::bfloat16>(1.0f);
  std::vector<lpo::bfloat16> parameter(3, one), gradient(3, slope);
  AdamW<lpo::bfloat16, Reference> adamw(
      context, {{parameter.data(), gradient.data(), 1}, {parameter.data() + 1, gradient.data() + 1, 2}},
      {0.9, 0.999, 1e-8, 0.0});
  for (int t = 0; t < 3; ++t)
    adamw.step(1e-3);  // below 1, bfloat16 numbers lie 2^-8 = 3.9e-3 apart: three steps round away
  CHECK(static_cast<float>(parameter[0]) == 1.0f - 0.00390625f);  // 0.997 is nearer to 0.99609375 than to 1
  CHECK(adamw.masters()(0) == doctest::Approx(0.997).epsilon(1e-5));
  AdamW<lpo::bfloat16, Reference> one_step(context, {{parameter.data(), gradient.data(), 3}}, {0.9, 0.999, 1e-8, 0.0});
  const auto before = parameter;
  one_step.step(1e-3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(parameter[i].bits == before[i].bits);
  CHECK(one_step.masters()(2) == doctest::Approx(0.99609375 - 0.001).epsilon(1e-6));
}

TEST_CASE("16-bit parameters continue with the same bits from moments, masters and step count") {
  lpo::Context<Reference> context(1);
  std::vector<lpo::half> gradient(4);
  const auto gradients_of = [&](int t) {
    for (int i = 0; i < 4; ++i)
      gradient[static_cast<std::size_t>(i)] = static_cast<lpo::half>(std::cos(static_cast<float>(t * 4 + i)));
  };
  const std::vector<lpo::half> start = {lpo::half(1.0f), lpo::half(2.0f), lpo::half(3.0f), lpo::half(4.0f)};
  auto whole = start, parts = start;
  AdamW<lpo::half, Reference> uninterrupted(context, {{whole.data(), gradient.data(), 4}});
  for (int t = 0; t < 10; ++t) gradients_of(t), uninterrupted.step(1e-3);
  AdamW<lpo::half, Reference> before(context, {{parts.data(), gradient.data(), 4}});
  for (int t = 0; t < 6; ++t) gradients_of(t), before.step(1e-3);
  auto loaded = start;  // what a new process has before it resumes
  AdamW<lpo::half, Reference> after(context, {{loaded.data(), gradient.data(), 4}});
  for (int i = 0; i < 4; ++i) {
    after.first_moment()(i) = before.first_moment()(i);
    after.second_moment()(i) = before.second_moment()(i);
    after.masters()(i) = before.masters()(i);
  }
  after.set_step_count(before.step_count());
  after.round_masters();
  for (std::size_t i = 0; i < 4; ++i) CHECK(loaded[i].bits == parts[i].bits);
  for (int t = 6; t < 10; ++t) gradients_of(t), after.step(1e-3);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(loaded[i].bits == whole[i].bits);
    CHECK(after.masters()(static_cast<lpo::index_t>(i)) == uninterrupted.masters()(static_cast<lpo::index_t>(i)));
  }
}

TEST_CASE("options outside their ranges are refused") {
  lpo::Context<Reference> context(1);
  CHECK_THROWS_AS((AdamW<float, Reference>(context, {}, {1.0, 0.999, 1e-8, 0})), lpo::ValueError);
  CHECK_THROWS_AS((AdamW<float, Reference>(context, {}, {0.9, 0.999, 0, 0})), lpo::ValueError);
}
