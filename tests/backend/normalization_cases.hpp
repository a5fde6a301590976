// SPDX-License-Identifier: MIT
// Cases of group norm, layer norm and softmax: known values, and a device against the reference.
#pragma once

#include <cmath>
#include <vector>

#include <lpo/backend/reference/normalization.hpp>

#include <backend/case_data.hpp>
#include <backend/on_device.hpp>

namespace normalization_cases {

using namespace lpo_test;
using lpo::index_t;

/// Everything a norm writes.
template <class T>
struct NormResult {
  std::vector<T> y, dx, dweight, dbias;
  std::vector<lpo::compute_t<T>> mean, inverse;

  bool operator==(const NormResult& other) const {
    return same_bits(y, other.y) && same_bits(dx, other.dx) && same_bits(dweight, other.dweight) &&
           same_bits(dbias, other.dbias) && same_bits(mean, other.mean) && same_bits(inverse, other.inverse);
  }
};

struct Wanted {
  bool dx = true, dweight = true, dbias = true, accumulate = false;
};

template <class Device, class T>
NormResult<T> group_norm(const lpo::kernel::GroupNormShape& shape, int threads, const Wanted& wanted, double offset) {
  auto ctx = test_context<Device>(threads);
  const index_t size = shape.n * shape.spatial * shape.c;
  const auto x = on_device<Device>(noise<T>(size, 1, 1.0, offset)), dy = on_device<Device>(noise<T>(size, 2));
  const auto weight = on_device<Device>(noise<T>(shape.c, 3, 0.5, 1.0)), bias = on_device<Device>(noise<T>(shape.c, 4));
  auto y = on_device<Device>(noise<T>(size, 5)), dx = on_device<Device>(noise<T>(size, 6));
  auto dweight = on_device<Device>(noise<T>(shape.c, 7)), dbias = on_device<Device>(noise<T>(shape.c, 8));
  const std::vector<lpo::compute_t<T>> nothing(static_cast<std::size_t>(shape.n * shape.groups));
  auto mean = on_device<Device>(nothing), inverse = on_device<Device>(nothing);
  lpo::kernel::GroupNorm<Device>::forward(ctx, shape, x.data(), weight.data(), bias.data(), y.data(), mean.data(),
                                          inverse.data());
  lpo::kernel::GroupNorm<Device>::backward(
      ctx, shape, x.data(), weight.data(), bias.data(), mean.data(), inverse.data(), dy.data(),
      wanted.dx ? dx.data() : nullptr, wanted.accumulate, wanted.dweight ? dweight.data() : nullptr,
      wanted.accumulate, wanted.dbias ? dbias.data() : nullptr, wanted.accumulate);
  return NormResult<T>{to_host(y), to_host(dx), to_host(dweight), to_host(dbias), to_host(mean), to_host(inverse)};
}

template <class Device, class T>
NormResult<T> layer_norm(index_t rows, index_t c, int threads, const Wanted& wanted, double offset) {
  auto ctx = test_context<Device>(threads);
  const auto x = on_device<Device>(noise<T>(rows * c, 1, 1.0, offset)), dy = on_device<Device>(noise<T>(rows * c, 2));
  const auto weight = on_device<Device>(noise<T>(c, 3, 0.5, 1.0)), bias = on_device<Device>(noise<T>(c, 4));
  auto y = on_device<Device>(noise<T>(rows * c, 5)), dx = on_device<Device>(noise<T>(rows * c, 6));
  auto dweight = on_device<Device>(noise<T>(c, 7)), dbias = on_device<Device>(noise<T>(c, 8));
  const std::vector<lpo::compute_t<T>> nothing(static_cast<std::size_t>(rows));
  auto mean = on_device<Device>(nothing), inverse = on_device<Device>(nothing);
  lpo::kernel::LayerNorm<Device>::forward(ctx, rows, c, 1e-5f, x.data(), weight.data(), bias.data(), y.data(),
                                          mean.data(), inverse.data());
  lpo::kernel::LayerNorm<Device>::backward(ctx, rows, c, x.data(), weight.data(), mean.data(), inverse.data(),
                                           dy.data(), wanted.dx ? dx.data() : nullptr, wanted.accumulate,
                                           wanted.dweight ? dweight.data() : nullptr, wanted.accumulate,
                                           wanted.dbias ? dbias.data() : nullptr, wanted.accumulate);
  return NormResult<T>{to_host(y), to_host(dx), to_host(dweight), to_host(dbias), to_host(mean), to_host(inverse)};
}

/// Sums over many elements differ by the rounding of float: parameters get a tolerance that grows with the count.
template <class T>
void check_close(const NormResult<T>& cpu, const NormResult<T>& reference, double terms) {
  const double limit = tolerance<T>();
  CHECK(distance(cpu.mean, reference.mean) < 1e-5);
  CHECK(distance(cpu.inverse, reference.inverse) < 1e-5);
  CHECK(distance(cpu.y, reference.y) < limit);
  CHECK(distance(cpu.dx, reference.dx) < limit);
  CHECK(distance(cpu.dweight, reference.dweight) < limit * (1.0 + 0.03 * std::sqrt(terms)));
  CHECK(distance(cpu.dbias, reference.dbias) < limit * (1.0 + 0.03 * std::sqrt(terms)));
}

template <class Device, class T>
void compare_group_norms(const lpo::kernel::GroupNormShape& shape, const Wanted& wanted, double offset = 0.3) {
  INFO("n " << shape.n << " spatial " << shape.spatial << " c " << shape.c << " groups " << shape.groups << " silu "
            << shape.silu << " bytes " << sizeof(T));
  const auto one = group_norm<Device, T>(shape, 1, wanted, offset);
  CHECK(one == group_norm<Device, T>(shape, 3, wanted, offset));
  check_close(one, group_norm<lpo::Reference, T>(shape, 1, wanted, offset),
              static_cast<double>(shape.n * shape.spatial));
}

template <class Device, class T>
void compare_layer_norms(index_t rows, index_t c, const Wanted& wanted, double offset = 0.3) {
  INFO("rows " << rows << " c " << c << " bytes " << sizeof(T));
  const auto one = layer_norm<Device, T>(rows, c, 1, wanted, offset);
  CHECK(one == layer_norm<Device, T>(rows, c, 3, wanted, offset));
  check_close(one, layer_norm<lpo::Reference, T>(rows, c, 1, wanted, offset), static_cast<double>(rows));
}

template <class Device>
void check_known_norms() {
  auto ctx = test_context<Device>(1);
  const auto x = on_device<Device>(std::vector<float>{1, 2, 3, 4});
  const auto weight = on_device<Device>(std::vector<float>{1, 1, 2, 2}), bias = on_device<Device>(std::vector<float>{0, 0, 1, 1});
  auto out = on_device<Device>(std::vector<float>(4));
  auto means = on_device<Device>(std::vector<float>(2)), inverses = on_device<Device>(std::vector<float>(2));
  const auto group_norm = [&](const lpo::kernel::GroupNormShape& shape) {
    lpo::kernel::GroupNorm<Device>::forward(ctx, shape, x.data(), weight.data(), bias.data(), out.data(), means.data(), inverses.data());
    return to_host(out);
  };
  // One group: mean 2.5, variance 1.25.
  auto y = group_norm({1, 1, 4, 1, 0.0f, false});
  const double s = 1.0 / std::sqrt(1.25);
  CHECK(to_host(means)[0] == doctest::Approx(2.5));
  CHECK(to_host(inverses)[0] == doctest::Approx(s));
  CHECK(y[0] == doctest::Approx(-1.5 * s));
  CHECK(y[3] == doctest::Approx(1.0 + 2.0 * 1.5 * s));
  // Two groups of two channels: every group is (-1, 1) after normalisation.
  y = group_norm({1, 1, 4, 2, 0.0f, true});
  CHECK(to_host(means)[1] == doctest::Approx(3.5));
  CHECK(y[0] == doctest::Approx(-1.0 / (1.0 + std::exp(1.0))));
  CHECK(y[3] == doctest::Approx(3.0 / (1.0 + std::exp(-3.0))));
  // Two positions of two channels, one row each.
  lpo::kernel::LayerNorm<Device>::forward(ctx, 2, 2, 0.0f, x.data(), weight.data(), bias.data(), out.data(), means.data(), inverses.data());
  y = to_host(out);
  CHECK(to_host(means)[1] == doctest::Approx(3.5));
  CHECK(to_host(inverses)[1] == doctest::Approx(2.0));
  CHECK(y[0] == doctest::Approx(-1.0));
  CHECK(y[3] == doctest::Approx(1.0));
}

template <class Device>
void check_known_softmax() {
  auto ctx = test_context<Device>(1);
  const auto x = on_device<Device>(std::vector<float>{1000.0f, 1000.0f + std::log(3.0f), 0, 0});
  auto out = on_device<Device>(std::vector<float>(4)), gradient = on_device<Device>(std::vector<float>(4, 1.0f));
  lpo::kernel::Softmax<Device>::forward(ctx, 2, 2, x.data(), out.data());
  const auto y = to_host(out);
  CHECK(y[0] == doctest::Approx(0.25).epsilon(1e-4));  // float spacing at 1000
  CHECK(y[1] == doctest::Approx(0.75).epsilon(1e-4));
  CHECK(y[2] == doctest::Approx(0.5));
  const auto probability = on_device<Device>(std::vector<float>{0.25f, 0.75f, 0.5f, 0.5f});
  const auto dy = on_device<Device>(std::vector<float>{4, 8, 1, 1});
  lpo::kernel::Softmax<Device>::backward(ctx, 2, 2, probability.data(), dy.data(), gradient.data(), true);
  const auto dx = to_host(gradient);
  CHECK(dx[0] == doctest::Approx(1.0 + 0.25 * (4 - 7)));
  CHECK(dx[1] == doctest::Approx(1.0 + 0.75 * (8 - 7)));
  CHECK(dx[2] == doctest::Approx(1.0));
}

template <class Device, class T>
std::vector<T> softmax(index_t rows, index_t c, int threads) {
  auto ctx = test_context<Device>(threads);
  const auto x = on_device<Device>(noise<T>(rows * c, 1, 6.0));
  auto y = on_device<Device>(noise<T>(rows * c, 4));
  lpo::kernel::Softmax<Device>::forward(ctx, rows, c, x.data(), y.data());
  return to_host(y);
}

template <class Device, class T>
std::vector<T> softmax_gradient(index_t rows, index_t c, const std::vector<T>& probability, bool accumulate, int threads) {
  auto ctx = test_context<Device>(threads);
  const auto y = on_device<Device>(probability), dy = on_device<Device>(noise<T>(rows * c, 2));
  auto dx = on_device<Device>(noise<T>(rows * c, 3));
  lpo::kernel::Softmax<Device>::backward(ctx, rows, c, y.data(), dy.data(), dx.data(), accumulate);
  return to_host(dx);
}

template <class Device, class T>
void compare_softmax(index_t rows, index_t c) {
  INFO("rows " << rows << " c " << c << " bytes " << sizeof(T));
  const auto y = softmax<Device, T>(rows, c, 1), expected = softmax<lpo::Reference, T>(rows, c, 1);
  CHECK(same_bits(y, softmax<Device, T>(rows, c, 3)));
  CHECK(distance(y, expected) < tolerance<T>());
  for (const bool accumulate : {false, true}) {
    const auto dx = softmax_gradient<Device, T>(rows, c, expected, accumulate, 1);
    CHECK(same_bits(dx, softmax_gradient<Device, T>(rows, c, expected, accumulate, 3)));
    CHECK(distance(dx, softmax_gradient<lpo::Reference, T>(rows, c, expected, accumulate, 1)) < tolerance<T>());
  }
}

template <class Device>
void compare_all_group_norms() {
  // Channels that are no multiple of the pack, groups of any width, one position, images of one block and of several, more than
  // a device holds on chip.
  const lpo::kernel::GroupNormShape shapes[] = {
      {1, 1, 1, 1, 1e-5f, false},     {2, 5, 3, 3, 1e-5f, true},     {3, 7, 32, 8, 1e-5f, true},
      {2, 16, 96, 32, 1e-6f, true},   {5, 64, 64, 32, 1e-5f, true},  {2, 9, 75, 5, 1e-5f, false},
      {1, 300, 160, 32, 1e-5f, true}, {2, 1100, 40, 8, 1e-5f, true}, {9, 4, 128, 32, 1e-5f, false},
      {1, 2100, 80, 2, 1e-5f, true},  {1, 24000, 40, 4, 1e-5f, true}};
  for (const auto& shape : shapes) {
    compare_group_norms<Device, float>(shape, {});
    compare_group_norms<Device, float>(shape, {true, true, true, true});
    compare_group_norms<Device, double>(shape, {true, true, true, true});
    compare_group_norms<Device, lpo::bfloat16>(shape, {});
    compare_group_norms<Device, lpo::half>(shape, {});
  }
}

template <class Device>
void compare_all_layer_norms() {
  const index_t sizes[][2] = {{1, 1}, {1, 2}, {3, 15}, {4, 16}, {5, 17}, {70, 64}, {13, 100}, {1100, 64}, {3, 320}};
  for (const auto& size : sizes) {
    compare_layer_norms<Device, float>(size[0], size[1], {});
    compare_layer_norms<Device, float>(size[0], size[1], {true, true, true, true});
    compare_layer_norms<Device, double>(size[0], size[1], {true, true, true, true});
    compare_layer_norms<Device, lpo::bfloat16>(size[0], size[1], {});
    compare_layer_norms<Device, lpo::half>(size[0], size[1], {});
  }
}

template <class Device>
void check_unwanted_gradients() {
  const lpo::kernel::GroupNormShape shape{2, 6, 32, 8, 1e-5f, true};
  for (const auto& wanted : {Wanted{true, false, false}, Wanted{false, true, false}, Wanted{false, false, true}}) {
    compare_group_norms<Device, float>(shape, wanted);
    compare_layer_norms<Device, float>(5, 24, wanted);
  }
}

template <class Device>
void check_large_means() {
  const lpo::kernel::GroupNormShape shape{1, 400, 96, 32, 1e-5f, false};
  const auto cpu = group_norm<Device, float>(shape, 1, {}, 1000.0);
  const auto exact = group_norm<lpo::Reference, float>(shape, 1, {}, 1000.0);
  CHECK(distance(cpu.inverse, exact.inverse) < 1e-6);
  CHECK(distance(cpu.y, exact.y) < 2e-6);
  const auto row = layer_norm<Device, float>(7, 321, 1, {}, 1000.0);
  const auto exact_row = layer_norm<lpo::Reference, float>(7, 321, 1, {}, 1000.0);
  CHECK(distance(row.inverse, exact_row.inverse) < 1e-6);
  CHECK(distance(row.y, exact_row.y) < 2e-6);
}

template <class Device>
void compare_all_softmax() {
  const index_t sizes[][2] = {{1, 1}, {3, 2}, {5, 16}, {4, 33}, {700, 77}, {2, 4096}};
  for (const auto& size : sizes) {
    compare_softmax<Device, float>(size[0], size[1]);
    compare_softmax<Device, double>(size[0], size[1]);
    compare_softmax<Device, lpo::bfloat16>(size[0], size[1]);
    compare_softmax<Device, lpo::half>(size[0], size[1]);
  }
}

}  // namespace normalization_cases
