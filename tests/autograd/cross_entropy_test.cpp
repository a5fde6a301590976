// SPDX-License-Identifier: MIT
// Cross-entropy: the value by its definition, gradients, parity of Cpu, errors.
#include <lpo/autograd/cross_entropy.hpp>
#include <lpo/backend/cpu/cross_entropy.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/cross_entropy.hpp>
#include <lpo/backend/reference/elementwise.hpp>

#include <array>

#include "support.hpp"

using Targets = std::span<const std::int32_t>;
constexpr std::array<std::int32_t, 4> targets = {2, 0, 6, 2};

TEST_CASE("cross_entropy is the negative log probability") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto x = randn(Extents<2>{4, 7}, 1, 2.0);
  const auto loss = cross_entropy(variable(tape, x), Targets(targets));
  for (index_t row = 0; row < 4; ++row) {
    double total = 0;
    for (index_t c = 0; c < 7; ++c) total += std::exp(x(row, c));
    CHECK(loss.view()(row) ==
          doctest::Approx(std::log(total) - x(row, targets[static_cast<std::size_t>(row)])).epsilon(1e-12));
  }
}

TEST_CASE("gradients of cross_entropy") {
  auto x = randn(Extents<2>{4, 7}, 1, 2.0);
  check_gradients([](auto&, const auto& u) { return cross_entropy(u, Targets(targets)); }, std::tie(x));
  check_gradients(
      [](auto&, const auto& u) {
        return Var(cross_entropy(u, Targets(targets)) * cross_entropy(Var(u * 2), Targets(targets)));
      },
      std::tie(x));
  check_parity(
      3e-6, [](auto&, const auto& u) { return cross_entropy(u, Targets(targets)); }, x);
}

TEST_CASE("targets that do not fit") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto xs = randn(Extents<2>{4, 6}, 1);
  const auto x = variable(tape, xs);
  CHECK(error_text<lpo::ValueError>([&] { cross_entropy(x, Targets(targets)); }) ==
        "[cross_entropy] target 6 is outside the 6 classes");
  CHECK(error_text<lpo::ShapeError>([&] { cross_entropy(x, Targets(targets).subspan(1)); }) ==
        "[cross_entropy] 4 rows need 4 targets, given 3");
}
