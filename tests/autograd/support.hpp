// SPDX-License-Identifier: MIT
// What the tests of differentiable operations share: random inputs, gradcheck on Reference, parity of Cpu with it.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <lpo/testing/backend_parity.hpp>
#include <lpo/testing/gradcheck.hpp>
#include <lpo/testing/random_tensor.hpp>
#include <string>
#include <tuple>

#include "../error_text.hpp"

using lpo::Context;
using lpo::Cpu;
using lpo::Extents;
using lpo::index_t;
using lpo::Reference;
using lpo::Tape;
using lpo::Tensor;
using lpo::Var;
using lpo::View;

/// Normal random numbers in double for the oracle.
template <int Rank>
Tensor<double, Rank, Reference> randn(const Extents<Rank>& extents, std::uint64_t seed, double deviation = 1,
                                      double mean = 0) {
  return lpo::testing::random_tensor<double, Reference>(extents, seed, deviation, mean);
}

/// Gradients in double on Reference against central differences.
template <class Function, class... Inputs>
void check_gradients(Function&& function, const std::tuple<Inputs&...>& inputs,
                     const lpo::testing::GradcheckOptions& options = {}) {
  const auto result = lpo::testing::gradcheck<Reference>(function, inputs, options);
  INFO(result.message);
  CHECK(result.checked > 0);
  CHECK(result.passed);
}

/// Float on Cpu, with two threads, against double on Reference.
template <class Function, class... Inputs>
void check_parity(double tolerance, const Function& function, const Inputs&... inputs) {
  lpo::testing::ParityOptions options;
  options.threads = 2;
  const auto result = lpo::testing::backend_parity<float, Cpu, Reference>(function, options, inputs...);
  INFO(result.message);
  CHECK(result.error <= tolerance);
}
