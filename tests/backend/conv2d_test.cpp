// SPDX-License-Identifier: MIT
// The CPU's convolution and its gradients against the Reference device, and the Reference device against small numbers
// worked out by hand and the identities that tie its gradients to its forward pass.
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/reference/conv2d.hpp>

#include "conv2d_cases.hpp"

using namespace parity;
using namespace conv2d_cases;

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
    lpo::Context<lpo::Reference> reference(1);
    lpo::Context<lpo::Cpu> one_thread(1), three_threads(3);
    const auto one = run<lpo::Cpu, T>(one_thread, s);
    check_close(s, one, run<lpo::Reference, T>(reference, s));
    check_same_bits(one, run<lpo::Cpu, T>(three_threads, s));
  }
}

TEST_CASE_TEMPLATE("convolutions without channels are their bias; either gradient of the weights may be left out", Device,
                   lpo::Reference, lpo::Cpu) {
  using Conv = lpo::kernel::Conv2d<Device>;
  lpo::Context<Device> context(2);
  const Conv2dShape empty = shape(1, 4, 5, 0, 3, 3, 1, 1, 1);
  const float bias[] = {1, 2, 3};
  std::vector<float> y(20 * 3, -1.0f);
  Conv::forward(context, empty, static_cast<const float*>(nullptr), static_cast<const float*>(nullptr), bias, y.data());
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(y[i] == bias[i % 3]);
  for (const Conv2dShape& s : {shape(1, 4, 5, 2, 3, 3, 1, 1, 1), shape(1, 32, 32, 32, 32, 3, 1, 1, 1)}) {
    const auto x = random_values<float>(s.h * s.w * s.c, 1);
    const std::vector<float> dy(static_cast<std::size_t>(s.h * s.w * s.o), 1.0f);
    std::vector<float> dbias(static_cast<std::size_t>(s.o), 0.0f);
    Conv::backward_weights(context, s, x.data(), dy.data(), static_cast<float*>(nullptr), false, dbias.data(), false);
    for (const float sum : dbias) CHECK(sum == static_cast<float>(s.h * s.w));
  }
}
