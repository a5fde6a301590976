// SPDX-License-Identifier: MIT
// The convolution of CUDA devices and its gradients against the Reference device: every path, every storage type.
#include <lpo/backend/cuda/conv2d.cuh>
#include <lpo/backend/reference/conv2d.hpp>

#include "backend/conv2d_cases.hpp"

using namespace parity;
using namespace conv2d_cases;

namespace {

/// Channels in multiples of 8, which tensor cores and bulk copies can address, in images that fill boxes of pixels
/// badly.
std::vector<Conv2dShape> wide_shapes() {
  std::vector<Conv2dShape> list = {
      shape(1, 16, 16, 64, 64, 3, 1, 1, 1),  shape(2, 16, 16, 320, 320, 3, 1, 1, 1),
      shape(3, 8, 8, 8, 8, 3, 1, 1, 1),      shape(2, 12, 20, 72, 200, 3, 1, 1, 1),
      shape(1, 9, 7, 24, 136, 3, 1, 1, 1),   shape(5, 7, 5, 128, 40, 3, 1, 1, 1),
      shape(2, 16, 16, 64, 96, 3, 2, 1, 1),  shape(2, 15, 18, 80, 64, 3, 2, 0, 1),
      shape(1, 10, 11, 64, 64, 1, 2, 0, 0),  shape(1, 17, 13, 32, 48, 5, 3, 2, 1),
      shape(2, 6, 6, 40, 64, 2, 2, 0, 0),    shape(2, 8, 8, 640, 64, 3, 1, 1, 1),
      shape(1, 33, 40, 16, 168, 3, 1, 0, 0), shape(1, 6, 6, 16, 24, 3, 1, 4, 3),
      shape(40, 2, 2, 64, 64, 3, 1, 1, 1),   shape(1, 1, 1, 64, 64, 3, 1, 1, 1),
      shape(2, 20, 20, 16, 16, 1, 1, 0, 0),  shape(1, 64, 64, 64, 64, 3, 1, 1, 1),
      shape(0, 8, 8, 16, 16, 3, 1, 1, 1),
  };
  list.push_back({1, 6, 9, 16, 24, 2, 3, 1, 1, 0, 0, 2});  // another size and other padding along each side
  list.push_back({1, 6, 9, 16, 24, 2, 3, 2, 1, 0, 0, 2});
  return list;
}

}  // namespace

TEST_CASE_TEMPLATE("cuda conv2d agrees with the reference", T, LPO_STORAGE_TYPES) {
  lpo::Context<lpo::Cuda> context;
  lpo::Context<lpo::Reference> reference(1);
  auto list = shapes();
  for (const Conv2dShape& s : wide_shapes()) list.push_back(s);
  for (const Conv2dShape& s : list) {
    CAPTURE(s.n);
    CAPTURE(s.h);
    CAPTURE(s.w);
    CAPTURE(s.c);
    CAPTURE(s.o);
    CAPTURE(s.kernel_h);
    CAPTURE(s.stride);
    CAPTURE(s.pad_top);
    const auto first = run<lpo::Cuda, T>(context, s);
    check_close(s, first, run<lpo::Reference, T>(reference, s));
    check_same_bits(first, run<lpo::Cuda, T>(context, s));
  }
}

TEST_CASE("cuda conv2d works without bias") {
  lpo::Context<lpo::Cuda> context;
  lpo::Context<lpo::Reference> reference(1);
  const Conv2dShape s = shape(1, 6, 6, 16, 24, 3, 1, 1, 1);
  const auto x = random_values<lpo::half>(s.n * s.h * s.w * s.c, 1),
             weight = random_values<lpo::half>(s.o * 9 * s.c, 2);
  std::vector<lpo::half> y(static_cast<std::size_t>(s.n * s.h * s.w * s.o)), expected = y;
  const lpo::half* none = nullptr;
  const auto x_there = on_device<lpo::Cuda>(x), weight_there = on_device<lpo::Cuda>(weight), y_there = on_device<lpo::Cuda>(y);
  lpo::kernel::Conv2d<lpo::Cuda>::forward(context, s, x_there.data(), weight_there.data(), none, y_there.data());
  y = to_host(y_there);
  lpo::kernel::Conv2d<lpo::Reference>::forward(reference, s, x.data(), weight.data(), none, expected.data());
  CHECK(difference(y, expected, 12.0) < tolerance<lpo::half>(9 * s.c));
}
