// SPDX-License-Identifier: MIT
// The projection: gradients with and without bias, from strided rows, of a weight used twice; errors.
#include <lpo/autograd/adapted_linear.hpp>
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
  SUBCASE("onto an addend, which may be the input") {
    auto z = randn(Extents<2>{4, 5}, 6), square = randn(Extents<2>{6, 6}, 7);
    check_gradients([](auto&, const auto& u, const auto& v, const auto& c, const auto& d) { return linear(u, v, c, d); },
                    std::tie(x, w, b, z));
    check_gradients([](auto&, const auto& u, const auto& v, const auto& d) { return linear(u, v, {}, d); },
                    std::tie(std::as_const(x), std::as_const(w), z));
    check_gradients([](auto&, const auto& u, const auto& v) { return linear(u, v, {}, u); }, std::tie(x, square));
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
  const auto a = randn(Extents<2>{4, 29}, 5), up = randn(Extents<2>{41, 4}, 6);
  check_parity(
      2e-6,
      [](auto&, const auto& u, const auto& v, const auto& c, const auto& d, const auto& e) {
        return adapted_linear(u, v, c, d, e, 0.5);
      },
      x, w, b, a, up);
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
  CHECK(error_text<lpo::ShapeError>([&] { linear(x, good, {}, x); }) == "[linear] addend [4, 6] must be dense [4, 5]");
  CHECK(error_text<lpo::ShapeError>([&] { linear(x, w.slice(1, 0, 6)); }) ==
        "[linear] the weight must be dense; copy the slice first");
}

TEST_CASE("adapted_linear is linear plus a scaled product of low rank, with its gradients") {
  auto x = randn(Extents<2>{4, 6}, 1), w = randn(Extents<2>{5, 6}, 2), a = randn(Extents<2>{2, 6}, 3), up = randn(Extents<2>{5, 2}, 4);
  auto b = randn(Extents<1>{5}, 5);
  const auto adapted = [](auto&, const auto& u, const auto& v, const auto& c, const auto& d, const auto& e) {
    return adapted_linear(u, v, c, d, e, 1.75);
  };
  check_gradients(adapted, std::tie(x, w, b, a, up));
  check_gradients(adapted, std::tie(x, std::as_const(w), std::as_const(b), a, up));
  check_gradients(adapted, std::tie(std::as_const(x), std::as_const(w), std::as_const(b), a, up));
  check_gradients(adapted, std::tie(x, std::as_const(w), std::as_const(b), std::as_const(a), std::as_const(up)));
  auto wide = randn(Extents<2>{4, 9}, 6);
  check_gradients(
      [](auto&, const auto& u, const auto& v, const auto& d, const auto& e) {
        return adapted_linear(Var(u.slice(1, 2, 8)), v, {}, d, e, 0.5);
      },
      std::tie(wide, w, a, up));

  Context<Reference> context(1);
  Tape<Reference> tape(context);
  const auto plain = linear(constant(tape, x), constant(tape, w), constant(tape, b));
  const auto inner = linear(constant(tape, x), constant(tape, a));
  const auto delta = linear(inner, constant(tape, up));
  const auto both = adapted_linear(constant(tape, x), constant(tape, w), constant(tape, b), constant(tape, a), constant(tape, up), 1.75);
  for (index_t i = 0; i < both.size(); ++i)
    CHECK(both.data()[i] == doctest::Approx(plain.data()[i] + 1.75 * delta.data()[i]).epsilon(1e-13));
  const auto onto = adapted_linear(constant(tape, x), constant(tape, w), constant(tape, b), constant(tape, a), constant(tape, up), 1.75, delta);
  for (index_t i = 0; i < both.size(); ++i)
    CHECK(onto.data()[i] == doctest::Approx(both.data()[i] + delta.data()[i]).epsilon(1e-13));
  CHECK_THROWS_AS(adapted_linear(constant(tape, x), constant(tape, w), constant(tape, b), constant(tape, up), constant(tape, a), 1.0), lpo::ShapeError);
}

TEST_CASE("an adapter whose B is 0 changes no bit") {
  const auto x = randn(Extents<2>{37, 29}, 1), w = randn(Extents<2>{41, 29}, 2), a = randn(Extents<2>{4, 29}, 3);
  const auto up = Tensor<double, 2, Reference>::zeros(Extents<2>{41, 4});
  Context<Reference> context(1);
  Tape<Reference> tape(context);
  const auto plain = linear(constant(tape, x), constant(tape, w));
  const auto adapted = adapted_linear(constant(tape, x), constant(tape, w), {}, constant(tape, a), constant(tape, up), 2.0);
  for (index_t i = 0; i < plain.size(); ++i) CHECK(adapted.data()[i] == plain.data()[i]);
}
