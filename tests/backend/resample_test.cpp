// SPDX-License-Identifier: MIT
// Nearest upsampling and the spatial mean: closed forms, the adjoint identity, and the CPU backend against the
// reference.
#include <lpo/backend/cpu/resample.hpp>
#include <lpo/backend/reference/resample.hpp>

#include <backend/resample_cases.hpp>

using namespace resample_cases;

TEST_CASE("upsampling and spatial mean of small images have their known values") {
  check_known_upsampling<lpo::Reference>();
  check_known_upsampling<lpo::Cpu>();
}

TEST_CASE("reference upsampling gradient is the adjoint of upsampling") {
  const lpo::kernel::UpsampleShape shape{2, 3, 4, 2, 7, 5};
  lpo::Context<lpo::Reference> ctx(1);
  const auto x = noise<double>(48, 1), dy = noise<double>(140, 2);
  std::vector<double> y(140), dx(48);
  lpo::kernel::UpsampleNearest<lpo::Reference>::forward(ctx, shape, x.data(), y.data());
  lpo::kernel::UpsampleNearest<lpo::Reference>::backward(ctx, shape, dy.data(), dx.data(), false);
  CHECK(dot(y, dy) == doctest::Approx(dot(x, dx)).epsilon(1e-12));
}

TEST_CASE("cpu upsampling agrees with the reference, for any thread count") { compare_all_upsampling<lpo::Cpu>(); }

TEST_CASE("cpu spatial mean agrees with the reference, for any thread count") { compare_all_means<lpo::Cpu>(); }
