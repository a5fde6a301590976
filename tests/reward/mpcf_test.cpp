// SPDX-License-Identifier: MIT
// The consistency filter at its limits, for every strategy and quirk option.
#include <doctest/doctest.h>

#include <lpo/reward/mpcf.hpp>

using namespace lpo;

TEST_CASE("strategies differ in the aesthetic limit only; limits are strict as in the code") {
  const auto keeps = [](float aesthetic, int strategy) { return mpcf_keeps({aesthetic, 0.1f, 0.1f}, false, {.strategy = strategy}); };
  CHECK(keeps(0.01f, 1));
  CHECK_FALSE(keeps(0.0f, 1));
  CHECK(keeps(-0.49f, 2));
  CHECK_FALSE(keeps(-0.5f, 2));
  CHECK(keeps(-0.99f, 3));
  CHECK_FALSE(keeps(-1.0f, 3));
  CHECK(keeps(-9.0f, 0));
  CHECK_FALSE(mpcf_keeps({1, 0, 1}, false));
  CHECK_FALSE(mpcf_keeps({1, 1, 0}, false));
  CHECK(mpcf_keeps({0, 0, 0}, false, {.strategy = 1, .inclusive = true}));
  CHECK_THROWS_AS(mpcf_keeps({}, false, {.strategy = 4}), ValueError);
}

TEST_CASE("ties are kept when all gaps are small; the official code forgets the absolute value") {
  CHECK(mpcf_keeps({0.19f, 0.029f, 0.069f}, true));
  CHECK(mpcf_keeps({-0.19f, -0.029f, -0.069f}, true));
  CHECK_FALSE(mpcf_keeps({-0.5f, 0, 0}, true));
  CHECK(mpcf_keeps({-0.5f, 0, 0}, true, {.tie_abs = false}));
  CHECK_FALSE(mpcf_keeps({0.2f, 0, 0}, true));
  CHECK(mpcf_keeps({0.2f, 0.03f, 0.07f}, true, {.inclusive = true}));
}
