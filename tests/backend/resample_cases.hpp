// SPDX-License-Identifier: MIT
// Cases of nearest upsampling and of the spatial mean: known values, and a device against the reference.
#pragma once

#include <vector>

#include <lpo/backend/reference/resample.hpp>

#include <backend/case_data.hpp>
#include <backend/on_device.hpp>

namespace resample_cases {

using namespace lpo_test;
using lpo::index_t;

template <class Device>
void check_known_upsampling() {
  auto ctx = test_context<Device>(1);
  using Upsample = lpo::kernel::UpsampleNearest<Device>;
  using Mean = lpo::kernel::SpatialMean<Device>;
  const std::vector<float> expected = {1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4};
  const auto x = on_device<Device>(std::vector<float>{1, 2, 3, 4}), dy = on_device<Device>(expected);
  auto y = on_device<Device>(std::vector<float>(16)), dx = on_device<Device>(std::vector<float>(4, 10.0f));
  const lpo::kernel::UpsampleShape doubled{1, 2, 2, 1, 4, 4};
  Upsample::forward(ctx, doubled, x.data(), y.data());
  CHECK(to_host(y) == expected);
  Upsample::backward(ctx, doubled, dy.data(), dx.data(), true);
  CHECK(to_host(dx) == std::vector<float>{14, 18, 22, 26});
  // 2 -> 3: indices 0, 0, 1.
  auto uneven = on_device<Device>(std::vector<float>(6));
  Upsample::forward(ctx, {1, 1, 2, 2, 1, 3}, x.data(), uneven.data());
  CHECK(to_host(uneven) == std::vector<float>{1, 2, 1, 2, 3, 4});

  auto mean = on_device<Device>(std::vector<float>(2));
  Mean::forward(ctx, 1, 2, 2, x.data(), mean.data());
  CHECK(to_host(mean) == std::vector<float>{2, 3});
  Mean::backward(ctx, 1, 2, 2, mean.data(), dx.data(), false);
  CHECK(to_host(dx) == std::vector<float>{1, 1.5f, 1, 1.5f});
}

template <class Device, class T>
std::vector<T> upsampled(const lpo::kernel::UpsampleShape& shape, int threads) {
  auto ctx = test_context<Device>(threads);
  const auto x = on_device<Device>(noise<T>(shape.n * shape.h * shape.w * shape.c, 1));
  auto y = on_device<Device>(noise<T>(shape.n * shape.out_h * shape.out_w * shape.c, 3));
  lpo::kernel::UpsampleNearest<Device>::forward(ctx, shape, x.data(), y.data());
  return to_host(y);
}

template <class Device, class T>
std::vector<T> upsampling_gradient(const lpo::kernel::UpsampleShape& shape, bool accumulate, int threads) {
  auto ctx = test_context<Device>(threads);
  const auto dy = on_device<Device>(noise<T>(shape.n * shape.out_h * shape.out_w * shape.c, 2));
  auto dx = on_device<Device>(noise<T>(shape.n * shape.h * shape.w * shape.c, 5));
  lpo::kernel::UpsampleNearest<Device>::backward(ctx, shape, dy.data(), dx.data(), accumulate);
  return to_host(dx);
}

template <class Device, class T>
void compare_upsampling(const lpo::kernel::UpsampleShape& shape) {
  INFO("h " << shape.h << " w " << shape.w << " c " << shape.c << " to " << shape.out_h << " " << shape.out_w
            << " bytes " << sizeof(T));
  CHECK(same_bits(upsampled<Device, T>(shape, 3), upsampled<lpo::Reference, T>(shape, 1)));
  for (const bool accumulate : {false, true}) {
    const auto dx = upsampling_gradient<Device, T>(shape, accumulate, 1);
    CHECK(same_bits(dx, upsampling_gradient<Device, T>(shape, accumulate, 3)));
    CHECK(distance(dx, upsampling_gradient<lpo::Reference, T>(shape, accumulate, 1)) < tolerance<T>());
  }
}

template <class Device, class T>
std::vector<T> means(index_t n, index_t spatial, index_t c, int threads) {
  auto ctx = test_context<Device>(threads);
  const auto x = on_device<Device>(noise<T>(n * spatial * c, 1));
  auto y = on_device<Device>(noise<T>(n * c, 3));
  lpo::kernel::SpatialMean<Device>::forward(ctx, n, spatial, c, x.data(), y.data());
  return to_host(y);
}

template <class Device, class T>
std::vector<T> mean_gradient(index_t n, index_t spatial, index_t c, bool accumulate, int threads) {
  auto ctx = test_context<Device>(threads);
  const auto dy = on_device<Device>(noise<T>(n * c, 2));
  auto dx = on_device<Device>(noise<T>(n * spatial * c, 4));
  lpo::kernel::SpatialMean<Device>::backward(ctx, n, spatial, c, dy.data(), dx.data(), accumulate);
  return to_host(dx);
}

template <class Device, class T>
void compare_means(index_t n, index_t spatial, index_t c) {
  INFO("n " << n << " spatial " << spatial << " c " << c << " bytes " << sizeof(T));
  const auto y = means<Device, T>(n, spatial, c, 1);
  CHECK(same_bits(y, means<Device, T>(n, spatial, c, 3)));
  CHECK(distance(y, means<lpo::Reference, T>(n, spatial, c, 1)) < tolerance<T>());
  for (const bool accumulate : {false, true})
    CHECK(distance(mean_gradient<Device, T>(n, spatial, c, accumulate, 3),
                   mean_gradient<lpo::Reference, T>(n, spatial, c, accumulate, 1)) < tolerance<T>());
}

/// Integer and other ratios, shrinking too, one pixel, channels around the pack width.
template <class Device>
void compare_all_upsampling() {
  const lpo::kernel::UpsampleShape shapes[] = {{1, 1, 1, 1, 1, 1},  {2, 4, 4, 32, 8, 8},     {1, 3, 5, 7, 8, 9},
                                               {2, 5, 4, 17, 3, 7}, {1, 16, 16, 64, 32, 32}, {3, 1, 2, 16, 4, 2},
                                               {1, 7, 7, 33, 2, 20}};
  for (const auto& shape : shapes) {
    compare_upsampling<Device, float>(shape);
    compare_upsampling<Device, double>(shape);
    compare_upsampling<Device, lpo::bfloat16>(shape);
    compare_upsampling<Device, lpo::half>(shape);
  }
}

template <class Device>
void compare_all_means() {
  const index_t sizes[][3] = {{1, 1, 1}, {3, 4, 15}, {2, 64, 64}, {1, 1100, 33}, {7, 16, 128}};
  for (const auto& size : sizes) {
    compare_means<Device, float>(size[0], size[1], size[2]);
    compare_means<Device, double>(size[0], size[1], size[2]);
    compare_means<Device, lpo::bfloat16>(size[0], size[1], size[2]);
    compare_means<Device, lpo::half>(size[0], size[1], size[2]);
  }
}

}  // namespace resample_cases
