// SPDX-License-Identifier: MIT
// The convolution: gradients for several kernels, strides and paddings; parity of Cpu; errors.
#include <lpo/autograd/conv2d.hpp>
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/conv2d.hpp>
#include <lpo/backend/reference/elementwise.hpp>

#include "support.hpp"

using lpo::Conv2dOptions;

namespace {

struct Case {
  const char* name;
  index_t n, h, w, c, o, kernel_h, kernel_w;
  Conv2dOptions options;
};

constexpr Case cases[] = {
    {"1x1", 2, 3, 4, 5, 3, 1, 1, {}},
    {"3x3", 2, 5, 4, 3, 4, 3, 3, Conv2dOptions::same(3)},
    {"3x3, stride 2", 1, 6, 5, 3, 2, 3, 3, Conv2dOptions::same(3, 2)},
    {"3x3, stride 2, padded below and to the right only", 1, 6, 4, 2, 3, 3, 3, {2, 0, 1, 0, 1}},
    {"3x3, no padding", 1, 4, 5, 2, 2, 3, 3, {}},
    {"5x3", 1, 5, 4, 2, 2, 5, 3, {1, 2, 2, 1, 1}},
    {"one pixel", 1, 1, 1, 2, 3, 3, 3, Conv2dOptions::same(3)},
};

}  // namespace

TEST_CASE("gradients of conv2d") {
  for (const Case& p : cases) {
    CAPTURE(p.name);
    auto x = randn(Extents<4>{p.n, p.h, p.w, p.c}, 1), w = randn(Extents<4>{p.o, p.kernel_h, p.kernel_w, p.c}, 2);
    auto b = randn(Extents<1>{p.o}, 3);
    check_gradients([&](auto&, const auto& u, const auto& v, const auto& c) { return conv2d(u, v, c, p.options); },
                    std::tie(x, w, b));
  }
}

TEST_CASE("a convolution without bias whose input has other consumers") {
  auto x = randn(Extents<4>{1, 4, 3, 3}, 1), w = randn(Extents<4>{3, 3, 3, 3}, 2);
  check_gradients(
      [](auto&, const auto& u, const auto& v) {
        const Var h = conv2d(u, v, {}, Conv2dOptions::same(3));
        return Var(conv2d(h, v, {}, Conv2dOptions::same(3)) + h + u);  // the weight is used twice
      },
      std::tie(x, w));
}

TEST_CASE("conv2d on Cpu agrees with Reference") {
  for (const Case& p : cases) {
    CAPTURE(p.name);
    const auto x = randn(Extents<4>{p.n, p.h + 7, p.w + 6, p.c + 14}, 1),
               w = randn(Extents<4>{p.o + 17, p.kernel_h, p.kernel_w, p.c + 14}, 2);
    const auto b = randn(Extents<1>{p.o + 17}, 3);
    check_parity(
        3e-6, [&](auto&, const auto& u, const auto& v, const auto& c) { return conv2d(u, v, c, p.options); }, x, w, b);
  }
}

TEST_CASE("extents that do not fit") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto xs = randn(Extents<4>{1, 64, 64, 6}, 1), ws = randn(Extents<4>{3, 3, 3, 4}, 2),
       ok = randn(Extents<4>{3, 3, 3, 6}, 2);
  auto bs = randn(Extents<1>{4}, 3);
  const auto x = variable(tape, xs), w = variable(tape, ws), good = variable(tape, ok);
  const auto b = variable(tape, bs);
  CHECK(error_text<lpo::ShapeError>([&] { conv2d(x, w, b, {}); }) ==
        "[conv2d] input has 6 channels, weight expects 4: input [1, 64, 64, 6], weight [3, 3, 3, 4]");
  CHECK(error_text<lpo::ShapeError>([&] { conv2d(x, good, b, {}); }) ==
        "[conv2d] bias has 4 elements, weight makes 3 channels");
  CHECK(error_text<lpo::ShapeError>([&] {
          conv2d(x.slice(1, 0, 2).reshape(Extents<4>{1, 2, 64, 6}), good, {}, {});
        }) == "[conv2d] input [1, 2, 64, 6] is smaller than the kernel [3, 3, 3, 6]");
  CHECK(error_text<lpo::ShapeError>([&] { conv2d(x.slice(2, 0, 9), good, {}, {}); }) ==
        "[conv2d] the input must be dense; copy the slice first");
  CHECK(error_text<lpo::ValueError>([&] {
          conv2d(x, good, {}, {0, 0, 0, 0, 0});
        }) == "[conv2d] stride 0 must be positive and padding must not be negative");
}
