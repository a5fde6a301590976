// SPDX-License-Identifier: MIT
// The convolution of CUDA devices and its gradients against the Reference device: every path, every storage type.
#include <string>

#include <lpo/backend/cuda/conv2d.cuh>
#include <lpo/backend/cuda/graph.cuh>
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
  lpo::Context<lpo::Cuda> own(lpo::CudaOptions{.cudnn = lpo::CudnnUse::never});
#if defined(LPO_HAS_CUDNN)
  lpo::Context<lpo::Cuda> same_bits(lpo::CudaOptions{.cudnn = lpo::CudnnUse::same_bits});
  lpo::Context<lpo::Cuda> fastest(lpo::CudaOptions{.cudnn = lpo::CudnnUse::fastest});
  lpo::Context<lpo::Cuda> cudnn(lpo::CudaOptions{.cudnn = lpo::CudnnUse::wherever_possible});
#endif
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
    const auto expected = run<lpo::Reference, T>(reference, s);
    const auto first = run<lpo::Cuda, T>(own, s);
    check_close(s, first, expected);
    check_same_bits(first, run<lpo::Cuda, T>(own, s));
#if defined(LPO_HAS_CUDNN)
    INFO("with cuDNN");
    check_same_bits(first, run<lpo::Cuda, T>(same_bits, s));
    for (auto* context : {&fastest, &cudnn}) {
      const auto other = run<lpo::Cuda, T>(*context, s);
      check_close(s, other, expected, 2.0);
      check_same_bits(other, run<lpo::Cuda, T>(*context, s));
    }
#endif
  }
}

#if defined(LPO_HAS_CUDNN)
TEST_CASE("cuda conv2d goes to cudnn where it is told to, and only there") {
  const Conv2dShape s = shape(2, 12, 20, 72, 200, 3, 1, 1, 1);
  const auto names = [&](lpo::CudnnUse use) {
    lpo::Context<lpo::Cuda> context(lpo::CudaOptions{.time_kernels = true, .cudnn = use});
    run<lpo::Cuda, lpo::bfloat16>(context, s);
    std::string all;
    for (const lpo::KernelTime& time : context.kernel_times()) all += time.name + "; ";
    return all;
  };
  const std::string forced = names(lpo::CudnnUse::wherever_possible), never = names(lpo::CudnnUse::never);
  for (const char* pass : {"conv2d forward", "conv2d data", "conv2d weights"})
    CHECK(forced.find(pass) != std::string::npos);
  CHECK(never.find("cudnn") == std::string::npos);
}

TEST_CASE("cuda conv2d chooses before a graph is captured, not while") {
  const Conv2dShape s = shape(1, 64, 64, 64, 64, 3, 1, 1, 1);
  const index_t count = s.n * s.h * s.w * s.c;
  const auto x = on_device<lpo::Cuda>(random_values<lpo::bfloat16>(count, 1));
  const auto weight = on_device<lpo::Cuda>(random_values<lpo::bfloat16>(s.o * 9 * s.c, 2));
  const auto bias = on_device<lpo::Cuda>(random_values<lpo::bfloat16>(s.o, 3));
  for (const auto use : {lpo::CudnnUse::fastest, lpo::CudnnUse::wherever_possible}) {
    auto y = on_device<lpo::Cuda>(std::vector<lpo::bfloat16>(static_cast<std::size_t>(count)));
    lpo::Context<lpo::Cuda> context(lpo::CudaOptions{.cudnn = use});
    const auto work = [&] {
      lpo::kernel::Conv2d<lpo::Cuda>::forward(context, s, x.data(), weight.data(), bias.data(), y.data());
    };
    work();
    context.synchronize();
    const auto expected = to_host(y);
    lpo::CudaGraph known(context, work);
    context.fill_zero(y.data(), static_cast<std::size_t>(count) * sizeof(lpo::bfloat16));
    known.replay();
    context.synchronize();
    CHECK(same_bits(to_host(y), expected));
    // A new shape: a kernel of lpo's is captured, and nothing is chosen.
    lpo::Context<lpo::Cuda> fresh(lpo::CudaOptions{.cudnn = use});
    const auto first_use = [&] {
      lpo::kernel::Conv2d<lpo::Cuda>::forward(fresh, s, x.data(), weight.data(), bias.data(), y.data());
    };
    const auto unknown = lpo::CudaGraph::of_known_work(fresh, first_use);
    CHECK(fresh.library<lpo::detail::CudnnPlans>().size() == 0);
    unknown->replay();
    fresh.synchronize();
    CHECK(difference(to_host(y), expected, 24.0) < tolerance<lpo::bfloat16>(9 * s.c));
  }
}
#endif

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
