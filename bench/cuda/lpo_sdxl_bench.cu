// SPDX-License-Identifier: MIT
// One LPO iteration at SDXL's full size with random weights in bfloat16 and gradient checkpointing: time and memory.
#include <memory>
#include <vector>

#include <lpo/cuda.cuh>
#include <lpo/train/sdxl_text_encoder.hpp>

#include <cuda/lpo_setup.cuh>

namespace {

using bench::Cuda;
using bench::index_t;

constexpr index_t tokens = 77, prompts_per_iteration = 4;

/// The policy with LoRA of rank 64, the reward model, and the text encoders, which both share here.
struct Models {
  using T = lpo::bfloat16;
  using First = lpo::CLIPTextModel<lpo::presets::clip_l, T, Cuda>;
  using Second = lpo::CLIPTextModel<lpo::presets::clip_bigg, T, Cuda>;
  using UNet = lpo::UNet2DCondition<lpo::presets::sdxl, T, Cuda>;
  using Lrm = lpo::LatentRewardModel<lpo::presets::sdxl, 1280, 1280, false, T, Cuda>;

  std::unique_ptr<UNet> unet = std::make_unique<UNet>();
  std::unique_ptr<Lrm> lrm = std::make_unique<Lrm>();
  std::unique_ptr<First> first = std::make_unique<First>();
  std::unique_ptr<Second> second = std::make_unique<Second>();
  lpo::ParameterStore<T, Cuda> store, frozen;
  lpo::SdxlTextEncoder<First, Second> encoder{*first, *second, std::vector<std::int32_t>(2 * tokens, 49407),
                                              lpo::sdxl_time_ids(1024, 1024)};
  lpo::SdxlTextEncoder<First, Second> reward_encoder{*first, *second, std::vector<std::int32_t>(2 * tokens, 49407),
                                                     lpo::sdxl_time_ids(1024, 1024), lpo::EmptyPrompt::encoded};

  explicit Models(lpo::Context<Cuda>& context) {
    lpo::enable_lora<T, Cuda>(*unet, 64, 64.0f);
    store.add("unet", *unet);
    store.allocate(lpo::is_lora_name);
    frozen.add("lrm", *lrm);
    frozen.add("first", *first);
    frozen.add("second", *second);
    frozen.allocate_frozen();
    bench::initialize_on_device(context, store, 1);
    bench::initialize_on_device(context, frozen, 2);
  }
};

/// The argument is the pairs of one pass.
void lpo_sdxl(benchmark::State& state) {
  lpo::Context<Cuda> context;
  Models models(context);
  auto options = bench::recipe(static_cast<index_t>(state.max_iterations) + 1, prompts_per_iteration);
  options.train_batch_size = 4;
  options.micro_batch_size = state.range(0);
  options.gradient_checkpointing = true;
  options.max_rows = 8;
  const bench::Run run = bench::train(context, models, options, 128, 2 * tokens);
  std::size_t at = 1;
  for (auto _ : state) state.SetIterationTime(run.seconds[at++]);
  state.counters["pairs"] = bench::mean(run.pairs, 1);
  bench::count_memory(state, context, models);
}

BENCHMARK(lpo_sdxl)->Arg(4)->Iterations(1)->UseManualTime()->Unit(benchmark::kSecond);

}  // namespace
