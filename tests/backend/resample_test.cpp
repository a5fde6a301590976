// SPDX-License-Identifier: MIT
// Nearest upsampling and the spatial mean: closed forms, the adjoint identity, and the CPU backend against the
// reference.
#include <lpo/backend/cpu/resample.hpp>
#include <lpo/backend/reference/resample.hpp>

#include <doctest/doctest.h>

#include <backend/case_data.hpp>

#include <vector>

namespace {

using namespace lpo_test;
using lpo::index_t;

template <class Device>
void check_known_upsampling() {
  lpo::Context<Device> ctx(1);
  const float x[] = {1, 2, 3, 4};
  float y[16], dx[4] = {10, 10, 10, 10};
  const lpo::kernel::UpsampleShape doubled{1, 2, 2, 1, 4, 4};
  lpo::kernel::UpsampleNearest<Device>::forward(ctx, doubled, x, y);
  const float expected[] = {1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4};
  for (int i = 0; i < 16; ++i) CHECK(y[i] == expected[i]);
  lpo::kernel::UpsampleNearest<Device>::backward(ctx, doubled, expected, dx, true);
  for (int i = 0; i < 4; ++i) CHECK(dx[i] == 10.0f + 4.0f * x[i]);
  // 2 -> 3: indices 0, 0, 1.
  lpo::kernel::UpsampleNearest<Device>::forward(ctx, {1, 1, 2, 2, 1, 3}, x, y);
  const float uneven[] = {1, 2, 1, 2, 3, 4};
  for (int i = 0; i < 6; ++i) CHECK(y[i] == uneven[i]);

  float mean[2];
  lpo::kernel::SpatialMean<Device>::forward(ctx, 1, 2, 2, x, mean);
  CHECK(mean[0] == 2.0f);
  CHECK(mean[1] == 3.0f);
  lpo::kernel::SpatialMean<Device>::backward(ctx, 1, 2, 2, mean, dx, false);
  CHECK(dx[0] == 1.0f);
  CHECK(dx[3] == 1.5f);
}

template <class T>
void compare_upsampling(const lpo::kernel::UpsampleShape& shape) {
  INFO("h " << shape.h << " w " << shape.w << " c " << shape.c << " to " << shape.out_h << " " << shape.out_w
            << " bytes " << sizeof(T));
  using Cpu = lpo::kernel::UpsampleNearest<lpo::Cpu>;
  using Reference = lpo::kernel::UpsampleNearest<lpo::Reference>;
  lpo::Context<lpo::Cpu> one(1), three(3);
  lpo::Context<lpo::Reference> reference(1);
  const index_t size = shape.n * shape.h * shape.w * shape.c, out_size = shape.n * shape.out_h * shape.out_w * shape.c;
  const auto x = noise<T>(size, 1), dy = noise<T>(out_size, 2);
  auto y = noise<T>(out_size, 3), expected = noise<T>(out_size, 4);
  Cpu::forward(three, shape, x.data(), y.data());
  Reference::forward(reference, shape, x.data(), expected.data());
  CHECK(same_bits(y, expected));
  for (const bool accumulate : {false, true}) {
    auto dx = noise<T>(size, 5), wide = dx, wanted = dx;
    Cpu::backward(one, shape, dy.data(), dx.data(), accumulate);
    Cpu::backward(three, shape, dy.data(), wide.data(), accumulate);
    Reference::backward(reference, shape, dy.data(), wanted.data(), accumulate);
    CHECK(same_bits(dx, wide));
    CHECK(distance(dx, wanted) < tolerance<T>());
  }
}

template <class T>
void compare_means(index_t n, index_t spatial, index_t c) {
  INFO("n " << n << " spatial " << spatial << " c " << c << " bytes " << sizeof(T));
  using Cpu = lpo::kernel::SpatialMean<lpo::Cpu>;
  using Reference = lpo::kernel::SpatialMean<lpo::Reference>;
  lpo::Context<lpo::Cpu> one(1), three(3);
  lpo::Context<lpo::Reference> reference(1);
  const auto x = noise<T>(n * spatial * c, 1), dy = noise<T>(n * c, 2);
  auto y = noise<T>(n * c, 3), wide = y, expected = y;
  Cpu::forward(one, n, spatial, c, x.data(), y.data());
  Cpu::forward(three, n, spatial, c, x.data(), wide.data());
  Reference::forward(reference, n, spatial, c, x.data(), expected.data());
  CHECK(same_bits(y, wide));
  CHECK(distance(y, expected) < tolerance<T>());
  for (const bool accumulate : {false, true}) {
    auto dx = noise<T>(n * spatial * c, 4), wanted = dx;
    Cpu::backward(three, n, spatial, c, dy.data(), dx.data(), accumulate);
    Reference::backward(reference, n, spatial, c, dy.data(), wanted.data(), accumulate);
    CHECK(distance(dx, wanted) < tolerance<T>());
  }
}

}  // namespace

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

TEST_CASE("cpu upsampling agrees with the reference, for any thread count") {
  // Integer and other ratios, shrinking too, one pixel, channels around the pack width.
  const lpo::kernel::UpsampleShape shapes[] = {{1, 1, 1, 1, 1, 1},  {2, 4, 4, 32, 8, 8},     {1, 3, 5, 7, 8, 9},
                                               {2, 5, 4, 17, 3, 7}, {1, 16, 16, 64, 32, 32}, {3, 1, 2, 16, 4, 2},
                                               {1, 7, 7, 33, 2, 20}};
  for (const auto& shape : shapes) {
    compare_upsampling<float>(shape);
    compare_upsampling<double>(shape);
    compare_upsampling<lpo::bfloat16>(shape);
    compare_upsampling<lpo::half>(shape);
  }
}

TEST_CASE("cpu spatial mean agrees with the reference, for any thread count") {
  const index_t sizes[][3] = {{1, 1, 1}, {3, 4, 15}, {2, 64, 64}, {1, 1100, 33}, {7, 16, 128}};
  for (const auto& size : sizes) {
    compare_means<float>(size[0], size[1], size[2]);
    compare_means<double>(size[0], size[1], size[2]);
    compare_means<lpo::bfloat16>(size[0], size[1], size[2]);
    compare_means<lpo::half>(size[0], size[1], size[2]);
  }
}
