// SPDX-License-Identifier: MIT
// Group norm, layer norm and softmax: gradients, parity of Cpu, errors.
#include <lpo/autograd/normalization.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/normalization.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/normalization.hpp>

#include "support.hpp"

TEST_CASE("gradients of group_norm") {
  auto x = randn(Extents<4>{2, 3, 2, 6}, 1, 1.5, 0.5);
  auto w = randn(Extents<1>{6}, 2, 0.5, 1.0), b = randn(Extents<1>{6}, 3);
  for (const index_t groups : {1, 2, 6})
    for (const bool silu : {false, true}) {
      CAPTURE(groups);
      CAPTURE(silu);
      check_gradients(
          [&](auto&, const auto& u, const auto& v, const auto& c) { return group_norm(u, v, c, groups, 1e-5f, silu); },
          std::tie(x, w, b));
      // The input is used again: its gradient is added to.
      check_gradients([&](auto&, const auto& u, const auto& v,
                          const auto& c) { return Var(group_norm(u, v, c, groups, 1e-5f, silu) * u + v); },
                      std::tie(x, std::as_const(w), b));
    }
}

TEST_CASE("gradients of layer_norm") {
  auto x = randn(Extents<2>{4, 7}, 1, 1.5, 0.5);
  auto w = randn(Extents<1>{7}, 2, 0.5, 1.0), b = randn(Extents<1>{7}, 3);
  check_gradients([](auto&, const auto& u, const auto& v, const auto& c) { return layer_norm(u, v, c, 1e-5f); },
                  std::tie(x, w, b));
  check_gradients(
      [](auto&, const auto& u, const auto& v, const auto& c) { return Var(layer_norm(u, v, c, 1e-5f) * u); },
      std::tie(x, std::as_const(w), std::as_const(b)));
}

TEST_CASE("gradients of softmax") {
  auto x = randn(Extents<2>{4, 7}, 1, 2.0);
  check_gradients([](auto&, const auto& u) { return softmax(u); }, std::tie(x));
  check_gradients([](auto&, const auto& u) { return Var(softmax(u) * u + softmax(Var(u * 2))); }, std::tie(x));
}

TEST_CASE("norms on Cpu agree with Reference") {
  const auto x = randn(Extents<4>{3, 5, 7, 40}, 1, 1.5, 0.5);
  const auto w = randn(Extents<1>{40}, 2, 0.5, 1.0), b = randn(Extents<1>{40}, 3);
  const auto rows = randn(Extents<2>{33, 40}, 4, 2.0);
  check_parity(
      3e-6, [](auto&, const auto& u, const auto& v, const auto& c) { return group_norm(u, v, c, 8, 1e-5f, true); }, x,
      w, b);
  check_parity(
      3e-6, [](auto&, const auto& u, const auto& v, const auto& c) { return group_norm(u, v, c, 5, 1e-6f, false); }, x,
      w, b);
  check_parity(
      3e-6, [](auto&, const auto& u, const auto& v, const auto& c) { return layer_norm(u, v, c, 1e-5f); }, rows, w, b);
  check_parity(
      3e-6, [](auto&, const auto& u) { return softmax(u); }, rows);
}

TEST_CASE("extents that do not fit") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto xs = randn(Extents<4>{1, 2, 2, 6}, 1);
  auto ws = randn(Extents<1>{5}, 2);
  auto rows = randn(Extents<2>{2, 6}, 3);
  const auto x = variable(tape, xs);
  const auto w = variable(tape, ws);
  const auto r = variable(tape, rows);
  CHECK(error_text<lpo::ShapeError>([&] { group_norm(x, w, w, 4, 1e-5f, false); }) ==
        "[group_norm] 6 channels cannot be split into 4 groups");
  CHECK(error_text<lpo::ShapeError>([&] { group_norm(x, w, w, 3, 1e-5f, false); }) ==
        "[group_norm] input [1, 2, 2, 6] needs 6 weights and biases, given 5 and 5");
  CHECK(error_text<lpo::ShapeError>([&] { layer_norm(r, w, w, 1e-5f); }) ==
        "[layer_norm] input [2, 6] needs 6 weights and biases, given 5 and 5");
  CHECK(error_text<lpo::ShapeError>([&] { softmax(r.slice(1, 0, 3)); }) ==
        "[softmax] the input must be dense; copy the slice first");
}
