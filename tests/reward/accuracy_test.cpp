// SPDX-License-Identifier: MIT
// Wilson's interval against published values and closed forms.
#include <doctest/doctest.h>

#include <lpo/reward/accuracy.hpp>

using namespace lpo;

TEST_CASE("Wilson's interval has the published ends") {
  // R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
  const auto check = [](double seen, index_t count, double low, double high) {
    const auto interval = wilson_interval(seen / static_cast<double>(count), count);
    CHECK(interval.low == doctest::Approx(low).epsilon(5e-4).scale(0.1));
    CHECK(interval.high == doctest::Approx(high).epsilon(5e-4).scale(0.1));
  };
  check(81, 263, 0.2553, 0.3662);
  check(15, 148, 0.0624, 0.1605);
  check(0, 20, 0.0000, 0.1611);
  check(1, 29, 0.0061, 0.1718);
}

TEST_CASE("Wilson's interval is symmetric, shrinks with the count, and knows nothing of nothing") {
  const auto low = wilson_interval(0.2, 50), high = wilson_interval(0.8, 50);
  CHECK(low.low == doctest::Approx(1 - high.high));
  CHECK(wilson_interval(1, 1).low == doctest::Approx(1 / (1 + 1.959963984540054 * 1.959963984540054)));
  CHECK(wilson_interval(1, 1).high == 1);
  CHECK(wilson_interval(0.5, 10000).high - wilson_interval(0.5, 10000).low == doctest::Approx(0.0196).epsilon(1e-3));
  CHECK(wilson_interval(0, 0).low == 0);
  CHECK(wilson_interval(0, 0).high == 1);
  CHECK_THROWS_AS(wilson_interval(1.5, 3), ValueError);
  CHECK_THROWS_AS(wilson_interval(0.5, -1), ValueError);
}
