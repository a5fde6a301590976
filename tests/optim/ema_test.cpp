// SPDX-License-Identifier: MIT
// The moving average against its closed form, and swapping.
#include <lpo/optim/ema.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include <lpo/backend/reference/elementwise.hpp>

using lpo::Reference;

TEST_CASE("after n updates on a constant the distance has shrunk by decay^n") {
  lpo::Context<Reference> context(1);
  std::vector<float> a = {0}, b = {0, 10};
  lpo::Ema<float, Reference> ema(context, {{a.data(), nullptr, 1}, {b.data(), nullptr, 2}}, 0.9);
  a[0] = 1;
  b[1] = 20;
  for (int i = 0; i < 12; ++i) ema.update();
  const double left = std::pow(0.9, 12);
  CHECK(ema.average()(0) == doctest::Approx(1 - left));
  CHECK(ema.average()(1) == 0);
  CHECK(ema.average()(2) == doctest::Approx(20 - 10 * left));
  ema.swap();
  CHECK(a[0] == doctest::Approx(1 - left));
  CHECK(ema.average()(2) == 20);
  ema.swap();
  CHECK(a[0] == 1);
  CHECK(b[1] == 20);
}

TEST_CASE("swapping takes no precision from the average of 16-bit parameters") {
  lpo::Context<Reference> context(1);
  const auto average_of = [&](bool swaps) {
    lpo::bfloat16 a(1.0f), b[] = {lpo::bfloat16(0.0f), lpo::bfloat16(-3.0f)};
    lpo::Ema<lpo::bfloat16, Reference> ema(context, {{&a, nullptr, 1}, {b, nullptr, 2}}, 0.999);
    a = lpo::bfloat16(2.0f);
    b[0] = lpo::bfloat16(1.0f);
    for (int i = 0; i < 50; ++i) {
      ema.update();
      if (!swaps) continue;
      ema.swap();
      CHECK(static_cast<float>(a) == static_cast<float>(lpo::bfloat16(ema.average()(0))));
      CHECK(static_cast<float>(b[0]) == static_cast<float>(lpo::bfloat16(ema.average()(1))));
      ema.swap();
      CHECK(static_cast<float>(a) == 2.0f);
      CHECK(static_cast<float>(b[1]) == -3.0f);
    }
    return std::vector<float>{ema.average()(0), ema.average()(1), ema.average()(2)};
  };
  const auto plain = average_of(false);
  CHECK(average_of(true) == plain);
  CHECK(plain[0] == doctest::Approx(2 - std::pow(0.999, 50)));
  CHECK(plain[2] == -3.0f);
}

TEST_CASE("warm-up limits the decay of update n to (1 + n) / (10 + n)") {
  lpo::Context<Reference> context(1);
  double p = 0;
  lpo::Ema<double, Reference> ema(context, {{&p, nullptr, 1}}, 0.999, true);
  p = 1;
  ema.update();
  CHECK(ema.average()(0) == doctest::Approx(1 - 2.0 / 11));
  ema.update();
  CHECK(ema.average()(0) == doctest::Approx(1 - 2.0 / 11 * 3.0 / 12));
  CHECK_THROWS_AS((lpo::Ema<double, Reference>(context, {}, 1.0)), lpo::ValueError);
}
