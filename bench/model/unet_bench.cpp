// SPDX-License-Identifier: MIT
// Stable Diffusion 1.5's UNet at full size on the CPU, random weights: a forward, and forward + backward with LoRA.
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <lpo/lpo.hpp>

#include <backend/peak.hpp>
#include <model/random_start.hpp>

namespace {

using lpo::Extents;
using lpo::index_t;

constexpr auto config = lpo::presets::sd15;
constexpr double row_operations = 803.3e9;  // products, convolutions and attention of one latent of 64 x 64

template <class T>
struct Denoiser {
  lpo::Context<lpo::Cpu> context;
  lpo::Tape<lpo::Cpu> tape{context};
  std::unique_ptr<lpo::UNet2DCondition<config, T, lpo::Cpu>> unet =
      std::make_unique<lpo::UNet2DCondition<config, T, lpo::Cpu>>();
  lpo::ParameterStore<T, lpo::Cpu> store;
  std::optional<lpo::KeepPacked<T, lpo::Cpu>> packed;
  lpo::Tensor<T, 4> latents;
  lpo::Tensor<T, 3> text;
  std::vector<float> timesteps;

  Denoiser(int threads, index_t rows, index_t lora_rank, bool keep_packed)
      : context(threads),
        latents(lpo::Tensor<T, 4>::zeros({rows, 64, 64, 4})),
        text(lpo::Tensor<T, 3>::zeros({rows, 77, config.context_width})),
        timesteps(static_cast<std::size_t>(rows), 501.0f) {
    if (lora_rank > 0) lpo::enable_lora<T, lpo::Cpu>(*unet, lora_rank, static_cast<float>(lora_rank));
    store.add("", *unet);
    store.allocate([](const std::string& name) { return lpo::is_lora_name(name); });
    bench::RandomStart random;
    random.draw(store);
    if (keep_packed) packed.emplace(context, store);
    random.draw(latents.data(), latents.size(), 1.7f);
    random.draw(text.data(), text.size(), 1.7f);
  }

  auto predict() {
    return (*unet)(lpo::constant(tape, latents), {timesteps, lpo::constant(tape, text), {}, {}});
  }
};

/// Arguments: rows, threads, whether weights stay packed.
template <class T>
void unet_forward(benchmark::State& state) {
  const index_t rows = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  Denoiser<T> denoiser(threads, rows, 0, state.range(2) != 0);
  const auto guard = denoiser.tape.inference();
  const auto run = [&] {
    denoiser.predict();
    denoiser.tape.clear();
  };
  run();  // maps the pages that it needs
  for (auto _ : state) run();
  bench::count_operations(state, row_operations * static_cast<double>(rows), threads);
  state.counters["MiB"] = static_cast<double>(denoiser.context.reserved_bytes()) / 1048576.0;
}

/// LoRA of rank 16 on the attention projections; the weights themselves are frozen. Arguments: rows, threads,
/// whether frozen weights stay packed.
template <class T>
void lora_forward_backward(benchmark::State& state) {
  const index_t rows = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  Denoiser<T> denoiser(threads, rows, 16, state.range(2) != 0);
  const auto run = [&] {
    denoiser.store.reset_gradients();
    const auto out = denoiser.predict();
    lpo::backward(out, std::as_const(denoiser.latents).view());
    denoiser.store.finish_gradients();
    denoiser.tape.clear();
  };
  run();  // maps the pages that it needs
  for (auto _ : state) run();
  // About: the gradient towards activations costs what the forward did, and attention 2.5 times that.
  bench::count_operations(state, 2.2 * row_operations * static_cast<double>(rows), threads);
  state.counters["MiB"] = static_cast<double>(denoiser.context.reserved_bytes()) / 1048576.0;
}

void rows_and_threads(benchmark::internal::Benchmark* benchmark) {
  for (const index_t threads : bench::thread_counts())
    if (threads > 1)
      for (const index_t rows : {1, 2})
        for (const index_t packed : {0, 1}) benchmark->Args({rows, threads, packed});
  benchmark->ArgNames({"rows", "threads", "packed"})->UseRealTime()->Unit(benchmark::kMillisecond);
}

// One thread too: its processor time is the one measure that other work on the machine leaves alone.
BENCHMARK_TEMPLATE(unet_forward, float)->Apply(rows_and_threads)->Args({2, 1, 0});
BENCHMARK_TEMPLATE(unet_forward, lpo::bfloat16)->Apply(rows_and_threads)->Args({2, 1, 0});
BENCHMARK_TEMPLATE(lora_forward_backward, float)->Apply(rows_and_threads);
BENCHMARK_TEMPLATE(lora_forward_backward, lpo::bfloat16)->Apply(rows_and_threads);

}  // namespace
