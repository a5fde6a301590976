// SPDX-License-Identifier: MIT
// The convolutions that every backend is tested on, and one run of a kernel and its gradients on a device.
#pragma once

#include <lpo/kernel/conv2d.hpp>
#include <lpo/tensor/context.hpp>

#include "on_device.hpp"
#include "parity.hpp"

namespace conv2d_cases {

using lpo::index_t;
using lpo::kernel::Conv2dShape;
using lpo_test::on_device, lpo_test::to_host;
using parity::random_values;

inline Conv2dShape shape(index_t n, index_t h, index_t w, index_t c, index_t o, index_t kernel, index_t stride,
                         index_t before, index_t after) {
  return {n, h, w, c, o, kernel, kernel, stride, before, after, before, after};
}

inline std::vector<Conv2dShape> shapes() {
  std::vector<Conv2dShape> list = {
      shape(1, 1, 1, 1, 1, 1, 1, 0, 0),     shape(0, 4, 4, 3, 2, 3, 1, 1, 1),   shape(2, 5, 7, 3, 4, 3, 1, 1, 1),
      shape(3, 8, 8, 16, 16, 1, 1, 0, 0),   shape(2, 6, 5, 20, 33, 1, 2, 0, 0), shape(2, 8, 8, 64, 80, 3, 1, 1, 1),
      shape(4, 2, 2, 48, 96, 3, 1, 1, 1),   shape(2, 8, 8, 17, 32, 3, 2, 1, 1), shape(2, 8, 8, 12, 20, 3, 2, 0, 1),
      shape(1, 9, 7, 4, 5, 3, 2, 0, 1),     shape(2, 1, 1, 7, 9, 3, 1, 1, 1),   shape(1, 12, 12, 3, 64, 3, 1, 1, 1),
      shape(1, 12, 12, 64, 3, 3, 1, 1, 1),  shape(1, 7, 7, 2, 3, 5, 3, 2, 1),   shape(1, 6, 6, 3, 3, 2, 2, 0, 0),
      shape(1, 5, 5, 2, 3, 3, 1, 0, 0),     shape(2, 33, 35, 3, 8, 3, 1, 1, 1),  // enough pixels to split their sum
      shape(1, 33, 34, 15, 26, 3, 1, 1, 1),                                      // the weight gradient packs dy
      shape(1, 23, 24, 130, 3, 3, 1, 1, 1),  // its sum over pixels that lie far apart is cut into short slices
      shape(1, 7, 7, 2, 3, 1, 3, 1, 0),     shape(1, 6, 6, 2, 3, 3, 1, 4, 3),
      shape(1, 5, 20, 32, 40, 3, 1, 1, 1),  shape(2, 4, 38, 32, 24, 3, 2, 1, 1),  // lines of more than 16 pixels
  };
  Conv2dShape odd{1, 6, 9, 5, 6, 2, 3, 1, 1, 0, 0, 2};  // another size and other padding along each side
  list.push_back(odd);
  odd.stride = 2;
  list.push_back(odd);
  return list;
}

template <class T>
struct Results {
  std::vector<T> y, dx, dx_more, dweight, dweight_more, dbias;
};

template <class Device, class T>
Results<T> run(lpo::Context<Device>& context, const Conv2dShape& s) {
  const index_t outputs = s.n * s.out_h() * s.out_w() * s.o, inputs = s.n * s.h * s.w * s.c;
  const index_t weights = s.o * s.kernel_h * s.kernel_w * s.c;
  const auto x = on_device<Device>(random_values<T>(inputs, 1)), weight = on_device<Device>(random_values<T>(weights, 2));
  const auto bias = on_device<Device>(random_values<T>(s.o, 3)), dy = on_device<Device>(random_values<T>(outputs, 4));
  const auto nan = [](index_t count) {
    return std::vector<T>(static_cast<std::size_t>(std::max<index_t>(count, 1)), static_cast<T>(std::nanf("")));
  };
  auto start_y = nan(outputs), start_dx = nan(inputs);
  if (s.n == 0) start_y[0] = start_dx[0] = T(0.0f);
  auto y = on_device<Device>(start_y), dx = on_device<Device>(start_dx), dweight = on_device<Device>(nan(weights));
  auto dx_more = on_device<Device>(random_values<T>(inputs, 5)), dbias = on_device<Device>(random_values<T>(s.o, 7));
  auto dweight_more = on_device<Device>(random_values<T>(weights, 6));
  using Conv = lpo::kernel::Conv2d<Device>;
  Conv::forward(context, s, x.data(), weight.data(), bias.data(), y.data());
  Conv::backward_data(context, s, dy.data(), weight.data(), dx.data(), false);
  Conv::backward_data(context, s, dy.data(), weight.data(), dx_more.data(), true);
  Conv::backward_weights(context, s, x.data(), dy.data(), dweight.data(), false, static_cast<T*>(nullptr), false);
  Conv::backward_weights(context, s, x.data(), dy.data(), dweight_more.data(), true, dbias.data(), true);
  return {to_host(y), to_host(dx), to_host(dx_more), to_host(dweight), to_host(dweight_more), to_host(dbias)};
}

/// Asserts that `actual` is `expected` but for the rounding of its storage and of its sums, which may happen `roundings`
/// times: where a library adds to what it has rounded.
template <class T>
void check_close(const Conv2dShape& s, const Results<T>& actual, const Results<T>& expected, double roundings = 1.0) {
  using parity::difference, parity::tolerance;
  const index_t taps = s.kernel_h * s.kernel_w * s.c, back = s.kernel_h * s.kernel_w * s.o;
  const index_t pixels = s.n * s.out_h() * s.out_w();
  const auto root = [](index_t terms) { return std::sqrt(static_cast<double>(terms) + 1.0); };
  CHECK(difference(actual.y, expected.y, root(taps)) < roundings * tolerance<T>(taps));
  CHECK(difference(actual.dx, expected.dx, root(back)) < roundings * tolerance<T>(back));
  CHECK(difference(actual.dx_more, expected.dx_more, root(back)) < roundings * tolerance<T>(back));
  CHECK(difference(actual.dweight, expected.dweight, root(pixels)) < roundings * tolerance<T>(pixels));
  CHECK(difference(actual.dweight_more, expected.dweight_more, root(pixels)) < roundings * tolerance<T>(pixels));
  CHECK(difference(actual.dbias, expected.dbias, root(pixels)) < roundings * tolerance<T>(pixels));
}

template <class T>
void check_same_bits(const Results<T>& a, const Results<T>& b) {
  using parity::same_bits;
  CHECK(same_bits(a.y, b.y));
  CHECK(same_bits(a.dx, b.dx));
  CHECK(same_bits(a.dx_more, b.dx_more));
  CHECK(same_bits(a.dweight, b.dweight));
  CHECK(same_bits(a.dweight_more, b.dweight_more));
  CHECK(same_bits(a.dbias, b.dbias));
}

}  // namespace conv2d_cases
