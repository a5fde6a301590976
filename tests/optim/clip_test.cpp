// SPDX-License-Identifier: MIT
// The global gradient norm and torch's clipping factor.
#include <lpo/optim/clip.hpp>

#include <doctest/doctest.h>

#include <cmath>

#include <lpo/backend/reference/reduce.hpp>

TEST_CASE("the norm runs over all spans and the factor limits it") {
  lpo::Context<lpo::Reference> context(1);
  const float a[] = {3, 0}, b[] = {0, -4, 12};
  const std::vector<lpo::ParameterSpan<float>> spans = {{nullptr, a, 2}, {nullptr, b, 3}};
  const double norm = lpo::global_gradient_norm(context, spans);
  CHECK(norm == doctest::Approx(13));
  CHECK(lpo::clip_scale(norm, 1.0) == doctest::Approx(1 / 13.000001));
  CHECK(lpo::clip_scale(norm, 20.0) == 1);
  CHECK(lpo::clip_scale(norm, 0.0) == 1);
  CHECK(lpo::clip_scale(0.0, 1.0) == 1);
  CHECK(std::isnan(lpo::clip_scale(NAN, 1.0)));
}
