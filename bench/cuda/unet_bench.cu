// SPDX-License-Identifier: MIT
// Stable Diffusion 1.5's UNet at full size on the device, random weights: a forward, and forward + backward with LoRA.
#include <cstdio>
#include <memory>
#include <vector>

#include <lpo/cuda.cuh>

#include <cuda/device_time.cuh>
#include <cuda/random_weights.cuh>

namespace {

using bench::Cuda;
using bench::index_t;
using lpo::Extents;
#if !defined(LPO_BENCH_STORAGE)
#define LPO_BENCH_STORAGE lpo::bfloat16  // or lpo::half
#endif
using T = LPO_BENCH_STORAGE;

constexpr auto config = lpo::presets::sd15;

/// The model, its weights, and inputs for `rows` latents of 64 x 64.
struct Denoiser {
  std::unique_ptr<lpo::UNet2DCondition<config, T, Cuda>> unet = std::make_unique<lpo::UNet2DCondition<config, T, Cuda>>();
  lpo::ParameterStore<T, Cuda> store;
  lpo::Tape<Cuda> tape;

  explicit Denoiser(index_t lora_rank, lpo::Context<Cuda>& context = bench::device()) : tape(context) {
    if (lora_rank > 0) lpo::enable_lora<T, Cuda>(*unet, lora_rank, static_cast<float>(lora_rank));
    store.add("", *unet);
    store.allocate([&](const std::string& name) { return name.find("lora_") != std::string::npos; });
    bench::initialize_on_device(context, store, 7);
  }

  auto predict(const bench::Random<T>& latents, const bench::Random<T>& text, std::span<const float> timesteps) {
    const auto rows = static_cast<index_t>(timesteps.size());
    const lpo::View<const T, 4, Cuda> x(latents.data(), Extents<4>{rows, 64, 64, 4});
    const lpo::View<const T, 3, Cuda> context(text.data(), Extents<3>{rows, 77, config.context_width});
    return (*unet)(lpo::constant(tape, x), {timesteps, lpo::constant(tape, context), {}, {}});
  }
};

void unet_forward(benchmark::State& state) {
  const index_t rows = state.range(0);
  Denoiser denoiser(0);
  const bench::Random<T> latents(rows * 64 * 64 * 4, 1), text(rows * 77 * config.context_width, 2);
  const std::vector<float> timesteps(static_cast<std::size_t>(rows), 501.0f);
  bench::time_on_device(state, [&] {
    const auto guard = denoiser.tape.inference();
    denoiser.predict(latents, text, timesteps);
    denoiser.tape.clear();
  }, false);
  state.counters["MiB"] = static_cast<double>(bench::device().reserved_bytes()) / 1048576.0;
}

/// The same, launched as one graph.
void unet_forward_graph(benchmark::State& state) {
  const index_t rows = state.range(0);
  Denoiser denoiser(0);
  const bench::Random<T> latents(rows * 64 * 64 * 4, 1), text(rows * 77 * config.context_width, 2);
  const std::vector<float> timesteps(static_cast<std::size_t>(rows), 501.0f);
  lpo::CudaGraph graph(bench::device(), [&] {
    const auto guard = denoiser.tape.inference();
    denoiser.predict(latents, text, timesteps);
    denoiser.tape.clear();
  });
  bench::time_on_device(state, [&] { graph.replay(); }, false);
}

void lora_forward_backward(benchmark::State& state) {
  const index_t rows = state.range(0);
  Denoiser denoiser(16);
  const bench::Random<T> latents(rows * 64 * 64 * 4, 1), text(rows * 77 * config.context_width, 2), cotangent(rows * 64 * 64 * 4, 3);
  const std::vector<float> timesteps(static_cast<std::size_t>(rows), 501.0f);
  bench::time_on_device(state, [&] {
    denoiser.store.reset_gradients();
    const auto out = denoiser.predict(latents, text, timesteps);
    lpo::backward(out, lpo::View<const T, 4, Cuda>(cotangent.data(), out.extents()));
    denoiser.store.finish_gradients();
    denoiser.tape.clear();
  }, false);
  state.counters["MiB"] = static_cast<double>(bench::device().reserved_bytes()) / 1048576.0;
}

/// Not a benchmark of its own: where the device's time goes, printed once per run with --benchmark_filter=kernels.
void kernels(benchmark::State& state) {
  auto options = bench::options();
  options.time_kernels = true;
  lpo::Context<Cuda> context(options);
  const index_t rows = state.range(0);
  Denoiser denoiser(state.range(1), context);
  const bench::Random<T> latents(rows * 64 * 64 * 4, 1), text(rows * 77 * config.context_width, 2), cotangent(rows * 64 * 64 * 4, 3);
  const std::vector<float> timesteps(static_cast<std::size_t>(rows), 501.0f);
  std::vector<lpo::KernelTime> times;
  for (auto _ : state) {
    for (int pass = 0; pass < 3; ++pass) {
      context.kernel_times();
      denoiser.store.reset_gradients();
      const auto out = denoiser.predict(latents, text, timesteps);
      if (state.range(1) > 0) lpo::backward(out, lpo::View<const T, 4, Cuda>(cotangent.data(), out.extents()));
      times = context.kernel_times();
      denoiser.tape.clear();
    }
  }
  for (const auto& time : times)
    std::printf("%9.3f ms %6lld x %s\n", time.milliseconds, static_cast<long long>(time.launches), time.name.c_str());
}

BENCHMARK(kernels)->ArgNames({"rows", "lora"})->Args({2, 0})->Args({20, 0})->Args({8, 16})->Iterations(1);
BENCHMARK(unet_forward)->ArgName("rows")->Arg(2)->Arg(20)->Arg(40)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(unet_forward_graph)->ArgName("rows")->Arg(2)->Arg(20)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(lora_forward_backward)->ArgName("rows")->Arg(2)->Arg(8)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace
