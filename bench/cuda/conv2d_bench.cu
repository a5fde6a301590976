// SPDX-License-Identifier: MIT
// Convolutions of Stable Diffusion's UNets on the device, three passes, in TFLOP/s beside a large product: by lpo's kernels
// and, in programs with cuDNN, by cuDNN's first offer, by the fastest, and by the fastest with the bits of lpo's kernel.
// bench/peers/conv2d_torch.py times the same shapes.
#include <array>

#include <lpo/backend/cuda/conv2d.cuh>

#include <cuda/device_time.cuh>

namespace {

using bench::Cuda;
using bench::index_t;

using lpo::CudnnUse;

/// One context for each way to choose.
template <CudnnUse use>
lpo::Context<Cuda>& context_with() {
  static lpo::Context<Cuda> context(lpo::CudaOptions{.cudnn = use});
  return context;
}

/// 3x3 with padding 1. Each pass takes one of x, y and weight as its result.
template <class T>
struct Convolution {
  lpo::kernel::Conv2dShape shape;
  bench::Random<T> x, y, weight, bias;

  explicit Convolution(const benchmark::State& state)
      : shape{state.range(0), state.range(1), state.range(1), state.range(2), state.range(3), 3, 3, state.range(4), 1, 1, 1, 1},
        x(shape.n * shape.h * shape.w * shape.c, 1), y(shape.n * shape.out_h() * shape.out_w() * shape.o, 2),
        weight(shape.o * 9 * shape.c, 3, 0.02f), bias(shape.o, 4) {
    bench::device().synchronize();  // other contexts read them
  }

  double operations() const {
    return 2.0 * 9.0 * static_cast<double>(shape.n * shape.out_h() * shape.out_w()) * static_cast<double>(shape.o * shape.c);
  }
};

template <class T, CudnnUse use>
void conv2d_forward(benchmark::State& state) {
  Convolution<T> p(state);
  auto& context = context_with<use>();
  bench::time_on_device(state, [&] {
    lpo::kernel::Conv2d<Cuda>::forward(context, p.shape, p.x.data(), p.weight.data(), p.bias.data(), p.y.data());
  }, true, context);
  bench::count_operations<T>(state, p.operations());
}

template <class T, CudnnUse use>
void conv2d_backward_data(benchmark::State& state) {
  Convolution<T> p(state);
  auto& context = context_with<use>();
  bench::time_on_device(state, [&] {
    lpo::kernel::Conv2d<Cuda>::backward_data(context, p.shape, p.y.data(), p.weight.data(), p.x.data(), false);
  }, true, context);
  bench::count_operations<T>(state, p.operations());
}

/// Of the weights alone; the bias' gradient is a sum over columns.
template <class T, CudnnUse use>
void conv2d_backward_weights(benchmark::State& state) {
  Convolution<T> p(state);
  auto& context = context_with<use>();
  bench::time_on_device(state, [&] {
    lpo::kernel::Conv2d<Cuda>::backward_weights(context, p.shape, p.x.data(), p.y.data(), p.weight.data(), false,
                                                static_cast<T*>(nullptr), false);
  }, true, context);
  bench::count_operations<T>(state, p.operations());
}

/// Stable Diffusion 1.5, then SDXL.
void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"n", "hw", "c", "o", "stride"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int n : {2, 20})
    for (const auto& s :
         {std::array{64, 320, 320, 1}, std::array{64, 960, 320, 1}, std::array{64, 320, 320, 2}, std::array{32, 320, 640, 1},
          std::array{32, 640, 640, 1}, std::array{32, 1920, 640, 1}, std::array{32, 640, 640, 2}, std::array{16, 640, 1280, 1},
          std::array{16, 1280, 1280, 1}, std::array{16, 2560, 1280, 1}, std::array{16, 1280, 1280, 2}, std::array{8, 1280, 1280, 1},
          std::array{8, 2560, 1280, 1}})
      b->Args({n, s[0], s[1], s[2], s[3]});
  for (const int n : {2, 8})
    for (const auto& s : {std::array{128, 320, 320, 1}, std::array{128, 960, 320, 1}, std::array{128, 320, 320, 2},
                          std::array{64, 640, 640, 1}, std::array{64, 1920, 640, 1}, std::array{64, 640, 640, 2},
                          std::array{32, 1280, 1280, 1}, std::array{32, 2560, 1280, 1}})
      b->Args({n, s[0], s[1], s[2], s[3]});
}

#define LPO_CONVOLUTIONS(use)                                                   \
  BENCHMARK_TEMPLATE(conv2d_forward, lpo::bfloat16, use)->Apply(shapes);        \
  BENCHMARK_TEMPLATE(conv2d_backward_data, lpo::bfloat16, use)->Apply(shapes);  \
  BENCHMARK_TEMPLATE(conv2d_backward_weights, lpo::bfloat16, use)->Apply(shapes)
LPO_CONVOLUTIONS(CudnnUse::never);
#if defined(LPO_HAS_CUDNN)
LPO_CONVOLUTIONS(CudnnUse::wherever_possible);
LPO_CONVOLUTIONS(CudnnUse::fastest);
LPO_CONVOLUTIONS(CudnnUse::same_bits);
#endif

}  // namespace
