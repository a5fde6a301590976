// SPDX-License-Identifier: MIT
// Guidance as an expression on tensors and as one node on a tape.
#include <lpo/diffusion/guidance.hpp>

#include <doctest/doctest.h>

#include <lpo/autograd/var.hpp>
#include <lpo/backend/reference/elementwise.hpp>

using lpo::Reference;
using lpo::Tensor;

TEST_CASE("guidance extrapolates from the unconditional prediction") {
  const auto c = Tensor<double, 2, Reference>::full({1, 1}, 0.5), u = Tensor<double, 2, Reference>::full({1, 1}, 0.2);
  const Tensor<double, 2, Reference> y = lpo::guided(u, c, 7.5);
  CHECK(y(0, 0) == doctest::Approx(2.45));
  const Tensor<double, 2, Reference> from_temporaries = lpo::guided(u.clone(), c.clone(), 7.5);
  CHECK(from_temporaries(0, 0) == doctest::Approx(2.45));
}

TEST_CASE("guidance splits a gradient into (1 - w) and w") {
  lpo::Context<Reference> context(1);
  lpo::Tape<Reference> tape(context);
  auto rows = Tensor<double, 4, Reference>::zeros({4, 1, 1, 2});
  for (int i = 0; i < 8; ++i) rows.data()[i] = 0.1 * i;
  const auto x = lpo::variable(tape, rows);
  const lpo::Var y = lpo::guided_rows(x, 5.0);
  REQUIRE(y.extent(0) == 2);
  CHECK(y.view()(1, 0, 0, 1) == doctest::Approx(0.3 + 5 * (0.7 - 0.3)));
  const auto cotangent = Tensor<double, 4, Reference>::full({2, 1, 1, 2}, 2.0);
  lpo::backward(y, cotangent.view());
  const auto gradient = lpo::read_gradient(x);
  CHECK(gradient(0, 0, 0, 0) == doctest::Approx(-8));
  CHECK(gradient(3, 0, 0, 1) == doctest::Approx(10));
  CHECK_THROWS_AS(lpo::guided_rows(x.slice(0, 0, 3), 5.0), lpo::ShapeError);
}
