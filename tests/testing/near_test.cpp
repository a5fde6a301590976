// SPDX-License-Identifier: MIT
// Comparisons: the worst element, floors, numbers that are none, strided views, extents that differ.
#include <lpo/testing/near.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/testing/random_tensor.hpp>

using lpo::Cpu;
using lpo::Extents;
using lpo::Reference;
using lpo::Tensor;
using lpo::testing::difference;
using lpo::testing::relative_error;

TEST_CASE("the largest difference relative to the largest expected value") {
  const auto a = Tensor<float, 1>::from(Extents<1>{3}, std::vector<float>{1, 2.5f, -8});
  const auto b = Tensor<double, 1, Reference>::from(Extents<1>{3}, std::vector<double>{1, 2, -8});
  const auto d = difference(a, b);
  CHECK(d.error == 0.0625);
  CHECK(d.index == 1);
  CHECK(d.found == 2.5);
  CHECK(d.expected == 2.0);
  CHECK(d.message == "relative error 0.0625 at element 1: found 2.5, expected 2");
  CHECK(relative_error(a, a) == 0.0);
}

TEST_CASE("zeros are compared with the floor") {
  const auto zero = Tensor<float, 1>::zeros({4});
  const auto tiny = Tensor<float, 1>::full({4}, 1e-9);
  CHECK(relative_error(tiny, zero, 1e-3) == doctest::Approx(1e-6));
  CHECK(relative_error(zero, zero) == 0.0);
  CHECK(relative_error(Tensor<float, 1>::zeros({0}), Tensor<float, 1>::zeros({0})) == 0.0);
}

TEST_CASE("what is not a number differs from every number") {
  const auto one = Tensor<float, 1>::full({2}, 1), nan = Tensor<float, 1>::full({2}, NAN);
  const auto infinite = Tensor<float, 1>::full({2}, HUGE_VAL);
  CHECK(std::isinf(relative_error(nan, one)));
  CHECK(std::isinf(relative_error(one, nan)));
  CHECK(relative_error(nan, nan) == 0.0);
  CHECK(std::isinf(relative_error(infinite, one)));
  CHECK(std::isinf(relative_error(one, infinite)));
  CHECK(relative_error(infinite, infinite) == 0.0);
}

TEST_CASE("strided views, and extents that differ") {
  const auto x = lpo::testing::random_tensor<float, Cpu>(Extents<2>{4, 6}, 1);
  const auto turned = x.view().permute({1, 0});
  const auto copy = Tensor<float, 2>::copy_of(turned);
  CHECK(relative_error(turned, copy.view()) == 0.0);
  CHECK(difference(turned, x.view()).message == "found extents [6, 4], expected [4, 6]");
  CHECK(std::isinf(relative_error(turned, x.view())));
}

TEST_CASE("the measure of the golden files") {
  const std::vector<float> truth = {3, 4}, found = {3, 4.5f};
  CHECK(lpo::testing::norm_error(std::span<const float>(found), std::span<const float>(truth)) == doctest::Approx(0.1));
  const std::vector<float> zero = {0, 0};
  CHECK(lpo::testing::norm_error(std::span<const float>(truth), std::span<const float>(zero)) ==
        doctest::Approx(5 / (1e-3 * std::sqrt(2.0))));
}

TEST_CASE("random tensors are the same numbers in every type") {
  const auto d = lpo::testing::random_tensor<double, Reference>(Extents<2>{30, 31}, 7, 2.0, 1.0);
  const auto f = lpo::testing::random_tensor<float, Cpu>(Extents<2>{30, 31}, 7, 2.0, 1.0);
  CHECK(relative_error(f, d) < 1e-7);
  const auto converted = lpo::testing::converted<float, Cpu>(d);
  CHECK(relative_error(converted, f) == 0.0);
  double mean = 0;
  for (const double v : d.span()) mean += v / 930;
  CHECK(std::fabs(mean - 1) < 0.2);
}
