// SPDX-License-Identifier: MIT
// backend_parity: rounding passes, and a backend that computes something else is found, with the array it is in.
#include <lpo/testing/backend_parity.hpp>

#include <doctest/doctest.h>

#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/elementwise.hpp>

using lpo::Cpu;
using lpo::Extents;
using lpo::Reference;
using lpo::testing::backend_parity;
using lpo::testing::random_tensor;

TEST_CASE("float on Cpu differs from double on Reference by rounding") {
  const auto x = random_tensor<double, Reference>(Extents<2>{9, 21}, 1),
             y = random_tensor<double, Reference>(Extents<2>{9, 21}, 2);
  const auto product = [](auto&, const auto& a, const auto& b) { return lpo::Var(silu(a) * b); };
  const auto result = backend_parity<float, Cpu, Reference>(product, {}, x, y);
  CHECK(result.error > 0.0);
  CHECK(result.error < 1e-6);
  CHECK(backend_parity<double, Cpu, Reference>(product, {}, x, y).error < 1e-14);
  CHECK(backend_parity<lpo::bfloat16, Cpu, Reference>(product, {}, x, y).error < 0.02);
}

TEST_CASE("a difference is named") {
  const auto x = random_tensor<double, Reference>(Extents<2>{9, 21}, 1),
             y = random_tensor<double, Reference>(Extents<2>{9, 21}, 2);
  const auto differs = [](auto& tape, const auto& a, const auto& b) {
    constexpr bool oracle = std::is_same_v<std::remove_cvref_t<decltype(tape)>, lpo::Tape<Reference>>;
    return lpo::Var(a + b * (oracle ? 1.0 : 1.5) - b * (oracle ? 0.0 : 0.5) + 0 * a);
  };
  CHECK(backend_parity<float, Cpu, Reference>(differs, {}, x, y).error < 1e-6);
  const auto wrong = [](auto& tape, const auto& a, const auto& b) {
    constexpr bool oracle = std::is_same_v<std::remove_cvref_t<decltype(tape)>, lpo::Tape<Reference>>;
    return lpo::Var(a + b * (oracle ? 1.0 : 3.0));
  };
  const auto result = backend_parity<float, Cpu, Reference>(wrong, {}, x, y);
  CHECK(result.error == doctest::Approx(2.0));
  CHECK(result.message.rfind("gradient of input 1: relative error ", 0) == 0);
}
