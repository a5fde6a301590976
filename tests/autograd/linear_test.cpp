// SPDX-License-Identifier: MIT
// The projection: gradients with and without bias, from strided rows, of a weight used twice; errors.
#include <lpo/autograd/linear.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/gemm.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include "support.hpp"

TEST_CASE("gradients of linear") {
  auto x = randn(Extents<2>{4, 6}, 1), w = randn(Extents<2>{5, 6}, 2);
  auto b = randn(Extents<1>{5}, 3);
  SUBCASE("with bias") {
    check_gradients([](auto&, const auto& u, const auto& v, const auto& c) { return linear(u, v, c); },
                    std::tie(x, w, b));
  }
  SUBCASE("without bias") {
    check_gradients([](auto&, const auto& u, const auto& v) { return linear(u, v); }, std::tie(x, w));
  }
  SUBCASE("a frozen weight, a frozen input") {
    check_gradients([](auto&, const auto& u, const auto& v) { return linear(u, v); }, std::tie(x, std::as_const(w)));
    check_gradients([](auto&, const auto& u, const auto& v) { return linear(u, v); }, std::tie(std::as_const(x), w));
  }
  SUBCASE("strided rows: a channel slice, and a slice of it") {
    auto wide = randn(Extents<2>{4, 15}, 4);
    check_gradients(
        [](auto&, const auto& u, const auto& v, const auto& c) {
          const auto part = u.slice(1, 2, 14);
          return Var(linear(part.slice(1, 1, 7), v, c) + linear(u.slice(1, 7, 13), v));
        },
        std::tie(wide, w, b));
  }
  SUBCASE("a part of the weight") {
    auto tall = randn(Extents<2>{9, 6}, 5);
    check_gradients([](auto&, const auto& u, const auto& v) { return linear(u, v.slice(0, 3, 8)); }, std::tie(x, tall));
  }
  SUBCASE("x x^T") {
    check_gradients([](auto&, const auto& u) { return linear(u, u); }, std::tie(x));
  }
  SUBCASE("no rows, no inputs") {
    Tensor<double, 2, Reference> nothing(Extents<2>{0, 6}), narrow(Extents<2>{4, 0}), weight(Extents<2>{5, 0});
    check_gradients([](auto&, const auto& u, const auto& v, const auto& c) { return linear(u, v, c); },
                    std::tie(nothing, w, b));
    check_gradients([](auto&, const auto& u, const auto& v, const auto& c) { return linear(u, v, c); },
                    std::tie(narrow, weight, b));
  }
}

TEST_CASE("linear on Cpu agrees with Reference") {
  const auto x = randn(Extents<2>{37, 29}, 1), w = randn(Extents<2>{41, 29}, 2), w2 = randn(Extents<2>{41, 13}, 3);
  const auto b = randn(Extents<1>{41}, 4);
  check_parity(
      2e-6,
      [](auto&, const auto& u, const auto& v, const auto& v2, const auto& c) {
        return Var(linear(u, v, c) + linear(u.slice(1, 3, 16), v2));
      },
      x, w, w2, b);
}

TEST_CASE("extents that do not fit") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto xs = randn(Extents<2>{4, 6}, 1), ws = randn(Extents<2>{5, 7}, 2), ok = randn(Extents<2>{5, 6}, 2);
  auto bs = randn(Extents<1>{4}, 3);
  const auto x = variable(tape, xs), w = variable(tape, ws), good = variable(tape, ok);
  const auto b = variable(tape, bs);
  CHECK(error_text<lpo::ShapeError>([&] { linear(x, w); }) ==
        "[linear] input has 6 features, weight expects 7: input [4, 6], weight [5, 7]");
  CHECK(error_text<lpo::ShapeError>([&] { linear(x, good, b); }) == "[linear] bias has 4 elements, weight makes 5");
  CHECK(error_text<lpo::ShapeError>([&] { linear(x, w.slice(1, 0, 6)); }) ==
        "[linear] the weight must be dense; copy the slice first");
}
