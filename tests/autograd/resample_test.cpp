// SPDX-License-Identifier: MIT
// Nearest upsampling and the mean over space: gradients, parity of Cpu, errors.
#include <lpo/autograd/resample.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/resample.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/resample.hpp>

#include "support.hpp"

TEST_CASE("gradients of resampling") {
  auto x = randn(Extents<4>{2, 3, 2, 5}, 1);
  for (const auto& size : {Extents<2>{6, 4}, Extents<2>{7, 5}, Extents<2>{3, 2}, Extents<2>{2, 1}}) {
    CAPTURE(size[0]);
    check_gradients([&](auto&, const auto& u) { return upsample_nearest(u, size[0], size[1]); }, std::tie(x));
    check_gradients(
        [&](auto&, const auto& u) {
          return upsample_nearest(u, size[0], size[1]) * upsample_nearest(Var(u * u), size[0], size[1]);
        },
        std::tie(x));
  }
  check_gradients([](auto&, const auto& u) { return spatial_mean(u); }, std::tie(x));
  check_gradients(
      [](auto&, const auto& u) {
        return Var(spatial_mean(u).reshape(Extents<4>{2, 1, 1, 5}) * u);
      },
      std::tie(x));
}

TEST_CASE("resampling on Cpu agrees with Reference") {
  const auto x = randn(Extents<4>{2, 9, 7, 35}, 1);
  check_parity(
      1e-6, [](auto&, const auto& u) { return upsample_nearest(u, 18, 14); }, x);
  check_parity(
      1e-6, [](auto&, const auto& u) { return upsample_nearest(u, 13, 15); }, x);
  check_parity(
      1e-6, [](auto&, const auto& u) { return spatial_mean(u); }, x);
}

TEST_CASE("extents that do not fit") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto xs = randn(Extents<4>{1, 2, 2, 6}, 1);
  const auto x = variable(tape, xs);
  CHECK(error_text<lpo::ShapeError>([&] { upsample_nearest(x, 0, 4); }) == "[upsample_nearest] output 0 x 4 is empty");
  CHECK(error_text<lpo::ShapeError>([&] { spatial_mean(x.slice(1, 0, 0)); }) ==
        "[spatial_mean] input [1, 0, 2, 6] has no positions");
}
