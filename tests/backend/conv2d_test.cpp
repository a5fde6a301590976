// SPDX-License-Identifier: MIT
// The CPU's convolution and its gradients against the Reference device, and the Reference device against small numbers
// worked out by hand and the identities that tie its gradients to its forward pass.
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/reference/conv2d.hpp>

#include "parity.hpp"

using namespace parity;
using lpo::kernel::Conv2dShape;

namespace {

Conv2dShape shape(index_t n, index_t h, index_t w, index_t c, index_t o, index_t kernel, index_t stride, index_t before,
                  index_t after) {
  return {n, h, w, c, o, kernel, kernel, stride, before, after, before, after};
}

std::vector<Conv2dShape> shapes() {
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
Results<T> run(const Conv2dShape& s, int threads) {
  lpo::Context<Device> context(threads);
  const index_t outputs = s.n * s.out_h() * s.out_w() * s.o, inputs = s.n * s.h * s.w * s.c;
  const index_t weights = s.o * s.kernel_h * s.kernel_w * s.c;
  const auto x = random_values<T>(inputs, 1), weight = random_values<T>(weights, 2), bias = random_values<T>(s.o, 3);
  const auto dy = random_values<T>(outputs, 4);
  const T nan = static_cast<T>(std::nanf(""));
  Results<T> r{std::vector<T>(dy.size(), nan),     std::vector<T>(x.size(), nan), random_values<T>(inputs, 5),
               std::vector<T>(weight.size(), nan), random_values<T>(weights, 6),  random_values<T>(s.o, 7)};
  if (s.n == 0) r.y[0] = r.dx[0] = T(0.0f);
  using Conv = lpo::kernel::Conv2d<Device>;
  Conv::forward(context, s, x.data(), weight.data(), bias.data(), r.y.data());
  Conv::backward_data(context, s, dy.data(), weight.data(), r.dx.data(), false);
  Conv::backward_data(context, s, dy.data(), weight.data(), r.dx_more.data(), true);
  Conv::backward_weights(context, s, x.data(), dy.data(), r.dweight.data(), false, static_cast<T*>(nullptr), false);
  Conv::backward_weights(context, s, x.data(), dy.data(), r.dweight_more.data(), true, r.dbias.data(), true);
  return r;
}

}  // namespace

TEST_CASE("reference conv2d computes small convolutions worked out by hand") {
  lpo::Context<lpo::Reference> context(1);
  using Conv = lpo::kernel::Conv2d<lpo::Reference>;
  // x = [1 2; 3 4], w = [1 10; 100 1000], one column of padding on the right and one row below.
  const double x[] = {1, 2, 3, 4}, weight[] = {1, 10, 100, 1000}, bias[] = {0.5};
  const Conv2dShape s = shape(1, 2, 2, 1, 1, 2, 1, 0, 1);
  double y[4], dx[4], dweight[4], dbias[1];
  Conv::forward(context, s, x, weight, bias, y);
  CHECK(std::vector<double>(y, y + 4) == std::vector<double>{4321.5, 402.5, 43.5, 4.5});
  const double dy[] = {1, 0, 0, 0};
  Conv::backward_data(context, s, dy, weight, dx, false);
  CHECK(std::vector<double>(dx, dx + 4) == std::vector<double>{1, 10, 100, 1000});
  Conv::backward_weights(context, s, x, dy, dweight, false, dbias, false);
  CHECK(std::vector<double>(dweight, dweight + 4) == std::vector<double>{1, 2, 3, 4});
  CHECK(dbias[0] == 1);
  // Stride 2 sees the four corners of a 3 x 3 image when padded by one: only the last tap of each window is inside it.
  const double nine[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  Conv::forward(context, shape(1, 3, 3, 1, 1, 2, 2, 1, 0), nine, weight, static_cast<const double*>(nullptr), y);
  CHECK(std::vector<double>(y, y + 4) == std::vector<double>{1000, 3200, 7040, 9865});
}

TEST_CASE("reference gradients are adjoint to the reference forward pass") {
  lpo::Context<lpo::Reference> context(1);
  using Conv = lpo::kernel::Conv2d<lpo::Reference>;
  for (const Conv2dShape& s : shapes()) {
    const index_t outputs = s.n * s.out_h() * s.out_w() * s.o, inputs = s.n * s.h * s.w * s.c;
    const auto x = random_values<double>(inputs, 1), dy = random_values<double>(outputs, 2);
    const auto weight = random_values<double>(s.o * s.kernel_h * s.kernel_w * s.c, 3);
    std::vector<double> y(dy.size(), 0.0), dx(x.size(), 0.0), dweight(weight.size());
    Conv::forward(context, s, x.data(), weight.data(), static_cast<const double*>(nullptr), y.data());
    Conv::backward_data(context, s, dy.data(), weight.data(), dx.data(), false);
    Conv::backward_weights(context, s, x.data(), dy.data(), dweight.data(), false, static_cast<double*>(nullptr),
                           false);
    const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
      double sum = 0;
      for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
      return sum;
    };
    const double expected = outputs == 0 ? 0.0 : dot(y, dy);  // <conv(x, w), dy> = <x, dx> = <w, dw>
    const double scale = 1.0 + static_cast<double>(outputs);
    CHECK(std::fabs((inputs == 0 ? 0.0 : dot(x, dx)) - expected) < 1e-11 * scale);
    CHECK(std::fabs(dot(weight, dweight) - expected) < 1e-11 * scale);
  }
}

TEST_CASE_TEMPLATE("cpu conv2d agrees with the reference", T, LPO_STORAGE_TYPES) {
  for (const Conv2dShape& s : shapes()) {
    CAPTURE(s.n);
    CAPTURE(s.h);
    CAPTURE(s.w);
    CAPTURE(s.c);
    CAPTURE(s.o);
    CAPTURE(s.kernel_h);
    CAPTURE(s.stride);
    CAPTURE(s.pad_top);
    const auto expected = run<lpo::Reference, T>(s, 1);
    const auto one = run<lpo::Cpu, T>(s, 1);
    const index_t taps = s.kernel_h * s.kernel_w * s.c, back = s.kernel_h * s.kernel_w * s.o;
    const index_t pixels = s.n * s.out_h() * s.out_w();
    const auto root = [](index_t terms) { return std::sqrt(static_cast<double>(terms) + 1.0); };
    CHECK(difference(one.y, expected.y, root(taps)) < tolerance<T>(taps));
    CHECK(difference(one.dx, expected.dx, root(back)) < tolerance<T>(back));
    CHECK(difference(one.dx_more, expected.dx_more, root(back)) < tolerance<T>(back));
    CHECK(difference(one.dweight, expected.dweight, root(pixels)) < tolerance<T>(pixels));
    CHECK(difference(one.dweight_more, expected.dweight_more, root(pixels)) < tolerance<T>(pixels));
    CHECK(difference(one.dbias, expected.dbias, root(pixels)) < tolerance<T>(pixels));
    const auto three = run<lpo::Cpu, T>(s, 3);
    CHECK(same_bits(one.y, three.y));
    CHECK(same_bits(one.dx, three.dx));
    CHECK(same_bits(one.dx_more, three.dx_more));
    CHECK(same_bits(one.dweight, three.dweight));
    CHECK(same_bits(one.dweight_more, three.dweight_more));
    CHECK(same_bits(one.dbias, three.dbias));
  }
}
