// SPDX-License-Identifier: MIT
// The tiny world's networks and training steps: UNet forward and backward, and one whole LPO iteration.
#include <vector>

#include "../backend/peak.hpp"
#include "tinyworld/tiny_files.hpp"

#include <lpo/train/lpo_trainer.hpp>

namespace {

using lpo::index_t;
namespace tw = tinyworld;

constexpr double unet_operations = 62.8e6;  // matrix and convolution FLOP of one latent, 2 per multiply-add

struct Network {
  lpo::Context<tw::Device> context;
  lpo::Tape<tw::Device> tape{context};
  tw::UNet unet;
  tw::Store store;
  lpo::Tensor<float, 4> latents;
  lpo::Tensor<float, 3> text;
  std::vector<float> timesteps;

  Network(int threads, index_t rows)
      : context(threads),
        latents(lpo::Tensor<float, 4>::full({rows, tw::latent_size, tw::latent_size, tw::latent_channels}, 0.5)),
        text(lpo::Tensor<float, 3>::full({rows, tw::text_config.positions, tw::text_config.width}, 0.1)),
        timesteps(static_cast<std::size_t>(rows), 500.0f) {
    store.add("unet", unet);
    store.allocate_all_trainable();
    store.initialize(1);
  }

  lpo::Var<float, 4, tw::Device> forward() {
    return unet(lpo::constant(tape, latents), {timesteps, lpo::constant(tape, text), {}, {}});
  }
};

/// Arguments: rows, threads.
void unet_forward(benchmark::State& state) {
  Network network(static_cast<int>(state.range(1)), state.range(0));
  const auto guard = network.tape.inference();
  for (auto _ : state) {
    network.forward();
    network.tape.clear();
  }
  bench::count_operations(state, unet_operations * static_cast<double>(state.range(0)), static_cast<int>(state.range(1)));
}
BENCHMARK(unet_forward)->ArgNames({"rows", "threads"})->Args({2, 1})->Args({64, 1})->Args({64, 2})->UseRealTime();

void unet_forward_backward(benchmark::State& state) {
  Network network(static_cast<int>(state.range(1)), state.range(0));
  for (auto _ : state) {
    network.store.reset_gradients();
    const auto out = network.forward();
    lpo::backward(out, std::as_const(network.latents).view());
    network.tape.clear();
  }
  bench::count_operations(state, 3 * unet_operations * static_cast<double>(state.range(0)), static_cast<int>(state.range(1)));
}
BENCHMARK(unet_forward_backward)->ArgNames({"rows", "threads"})->Args({64, 1})->Args({64, 2})->UseRealTime();

/// One LPO iteration with random weights: roll-out of 16 prompts, 20 steps, 4 candidates, all pairs trained.
void lpo_iteration(benchmark::State& state) {
  lpo::Context<tw::Device> context(static_cast<int>(state.range(0)));
  tw::UNet unet;
  tw::Text text;
  tw::Store store;
  lpo::enable_lora<float, tw::Device>(unet, 8, 8.0f);
  store.add("unet", unet);
  store.add("text_encoder", text);
  store.allocate(lpo::is_lora_name);
  store.initialize(1);
  tw::Lrm lrm;
  lrm.options.guidance = 1.0f;
  tw::Store reward_store;
  reward_store.add("", lrm);
  reward_store.allocate_frozen();
  reward_store.initialize(2);
  const auto tokenizer = tw::make_tokenizer();
  tw::TextEncoder encoder(text, tokenizer.encode(""));
  lpo::PromptTokens prompts;
  prompts.tokens = prompts.reward_tokens = tw::text_config.positions;
  for (int i = 0; i < 16; ++i) {
    const auto ids = tokenizer.encode("a large red square");
    prompts.ids.insert(prompts.ids.end(), ids.begin(), ids.end());
  }
  prompts.reward_ids = prompts.ids;
  const lpo::NoiseSchedule schedule(tw::scheduler_config());
  lpo::LpoTrainerOptions options;
  options.max_train_iterations = 1;
  options.sample_batch_size = 16;
  options.train_batch_size = 64;
  options.threshold.minimum = options.threshold.maximum = 0.0;
  for (auto _ : state) {
    lpo::LpoTrainer trainer(context, unet, store, encoder, lrm, encoder, schedule, tw::latent_extents, options);
    benchmark::DoNotOptimize(trainer.train(prompts).pairs);
  }
}
BENCHMARK(lpo_iteration)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
