// SPDX-License-Identifier: MIT
// Convolutions of the tiny world, of its VAE and of Stable Diffusion: forward and both gradients against the FMA peak.
#include <vector>

#include <lpo/backend/cpu/conv2d.hpp>

#include "peak.hpp"

namespace {

using lpo::index_t;

/// Arguments: batch, side, c, o, kernel, stride, pass (0 forward, 1 data gradient, 2 weight gradient), threads.
template <class T>
void conv2d(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(7));
  lpo::Context<lpo::Cpu> context(threads);
  const index_t pad = state.range(4) / 2;
  const lpo::kernel::Conv2dShape s{state.range(0),
                                   state.range(1),
                                   state.range(1),
                                   state.range(2),
                                   state.range(3),
                                   state.range(4),
                                   state.range(4),
                                   state.range(5),
                                   pad,
                                   pad,
                                   pad,
                                   pad};
  const index_t outputs = s.n * s.out_h() * s.out_w() * s.o, weights = s.o * s.kernel_h * s.kernel_w * s.c;
  std::vector<T> x(static_cast<std::size_t>(s.n * s.h * s.w * s.c), T(0.5f)), y(static_cast<std::size_t>(outputs)),
      weight(static_cast<std::size_t>(weights), T(0.25f)), bias(static_cast<std::size_t>(s.o), T(1.0f));
  using Conv = lpo::kernel::Conv2d<lpo::Cpu>;
  const auto run = [&] {
    if (state.range(6) == 0) Conv::forward(context, s, x.data(), weight.data(), bias.data(), y.data());
    if (state.range(6) == 1) Conv::backward_data(context, s, y.data(), weight.data(), x.data(), false);
    if (state.range(6) == 2)
      Conv::backward_weights(context, s, x.data(), y.data(), weight.data(), false, bias.data(), false);
  };
  run();  // maps the pages that it needs
  for (auto _ : state) {
    run();
    benchmark::ClobberMemory();
  }
  bench::count_operations<T>(
      state, 2.0 * static_cast<double>(outputs) * static_cast<double>(s.kernel_h * s.kernel_w * s.c), threads);
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  const std::vector<std::vector<index_t>> sizes = {
      {8, 8, 64, 64, 3, 1},   {64, 8, 64, 64, 3, 1},   {64, 8, 4, 64, 3, 1},    {64, 8, 64, 4, 3, 1},
      {64, 8, 64, 64, 3, 2},  {64, 4, 128, 128, 3, 1}, {64, 4, 256, 128, 3, 1}, {64, 2, 192, 192, 3, 1},
      {8, 2, 192, 192, 3, 1}, {64, 8, 128, 64, 1, 1},  {16, 32, 3, 32, 3, 1},   {16, 32, 32, 32, 3, 1},
      {16, 32, 64, 3, 3, 1},  {16, 16, 64, 64, 3, 1},  {1, 64, 320, 320, 3, 1}, {1, 16, 1280, 1280, 3, 1},
      {1, 32, 640, 640, 3, 1}, {1, 8, 1280, 1280, 3, 1}, {1, 16, 2560, 1280, 3, 1}, {1, 64, 320, 320, 3, 2},
      {1, 64, 960, 320, 1, 1}};
  for (const auto& size : sizes)
    for (index_t pass : {0, 1, 2})
      for (index_t threads : bench::thread_counts())
        benchmark->Args({size[0], size[1], size[2], size[3], size[4], size[5], pass, threads});
  benchmark->ArgNames({"n", "side", "c", "o", "kernel", "stride", "pass", "threads"})->UseRealTime();
}

}  // namespace

BENCHMARK_TEMPLATE(conv2d, float)->Apply(shapes);
BENCHMARK_TEMPLATE(conv2d, lpo::bfloat16)->Apply(shapes);
