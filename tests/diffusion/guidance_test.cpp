// SPDX-License-Identifier: MIT
// Guidance as an expression on tensors and as one node on a tape.
#include <lpo/diffusion/guidance.hpp>

#include <doctest/doctest.h>

#include <lpo/autograd/var.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/reduce.hpp>

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

TEST_CASE("guidance in half has the bits of PyTorch's half tensors") {
  lpo::Context<Reference> context(1);
  // torch: u, c = u.half(), c.half(); u + 7.5 * (c - u)
  const auto rows = Tensor<float, 4, Reference>::from(
      lpo::Extents<4>{2, 1, 1, 5},
      std::vector<float>{0.1f, -1.23456f, 3.3f, 0.00071f, -2.7f, 0.13f, -1.2f, -0.7f, 0.00093f, -2.69f});
  Tensor<float, 4, Reference> y(lpo::Extents<4>{1, 1, 1, 5});
  lpo::guide_in_half(context, rows.view(), 7.5, y.view());
  const float expected[] = {0.3251953125f, -0.97802734375f, -26.703125f, 0.0023593902587890625f, -2.625f};
  for (int i = 0; i < 5; ++i) CHECK(y.data()[i] == expected[i]);
  CHECK_THROWS_AS(lpo::guide_in_half(context, rows.view().slice(0, 0, 1), 7.5, y.view()), lpo::ShapeError);
}

TEST_CASE("rescaled guidance has the numbers of diffusers' rescale_noise_cfg") {
  lpo::Context<Reference> context(1);
  const lpo::Extents<4> extents{2, 1, 2, 2};
  auto guided = Tensor<double, 4, Reference>::from(extents, std::vector<double>{1, -2, 3, 0.5, 0.25, 0.75, -4, 2});
  const auto conditional =
      Tensor<double, 4, Reference>::from(extents, std::vector<double>{0.5, -1, 1.5, 0, 1, 2, -1, 0});
  const double expected[] = {0.654284125215, -1.308568250430, 1.962852375645,  0.327142062607,
                             0.161691045808, 0.485073137424,  -2.587056732931, 1.293528366465};
  lpo::rescale_guidance(context, guided.view(), conditional, 0.7);
  for (int i = 0; i < 8; ++i) CHECK(guided.data()[i] == doctest::Approx(expected[i]).epsilon(1e-11));
}

TEST_CASE("rescaling by 0 leaves guidance as it is, by 1 gives the conditional deviation; constant rows stay") {
  lpo::Context<Reference> context(1);
  auto rows = Tensor<float, 4, Reference>::zeros({3, 1, 1, 4}),
       conditional = Tensor<float, 4, Reference>::zeros({3, 1, 1, 4});
  for (int i = 0; i < 8; ++i) rows.data()[i] = static_cast<float>(i * i), conditional.data()[i] = static_cast<float>(i);
  for (int i = 8; i < 12; ++i) rows.data()[i] = 3;
  auto same = rows.clone();
  lpo::rescale_guidance(context, same.view(), conditional, 0.0);
  for (int i = 0; i < 12; ++i) CHECK(same.data()[i] == rows.data()[i]);
  lpo::rescale_guidance(context, rows.view(), conditional, 1.0);
  for (const double deviation : {lpo::detail::row_deviations<float, Reference>(context, rows)[0],
                                 lpo::detail::row_deviations<float, Reference>(context, rows)[1]})
    CHECK(deviation == doctest::Approx(std::sqrt(5.0)));  // of 0, 1, 2, 3
  for (int i = 8; i < 12; ++i) CHECK(rows.data()[i] == 3);
  CHECK_THROWS_AS(lpo::rescale_guidance(context, rows.view(), conditional, 1.5), lpo::ValueError);
  CHECK_THROWS_AS(lpo::rescale_guidance(context, rows.view(), conditional.view().slice(0, 0, 2), 0.5), lpo::ShapeError);
  Tensor<float, 4, Reference> none(lpo::Extents<4>{0, 1, 1, 4});
  CHECK_NOTHROW(lpo::rescale_guidance(context, none.view(), none, 0.5));
}
