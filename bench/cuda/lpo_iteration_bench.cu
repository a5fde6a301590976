// SPDX-License-Identifier: MIT
// One LPO iteration at Stable Diffusion 1.5's full size with random weights in bfloat16, by the library's trainer: its
// time, its parts, its kernels and its memory. bench/peers/lpo_torch.py is the same in PyTorch.
#include <array>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <lpo/cuda.cuh>
#include <lpo/train/clip_text_encoder.hpp>
#include <lpo/train/lpo_trainer.hpp>

#include <cuda/device_time.cuh>
#include <cuda/random_weights.cuh>

namespace {

using bench::Cuda;
using bench::index_t;
using lpo::LpoStage;
using T = lpo::bfloat16;

constexpr index_t tokens = 77, prompts_per_iteration = 5;
constexpr int steps = 20, candidates = 4;
constexpr double threshold_quantile = 0.45;  // keeps about 40 of 100 pairs with these weights: lpo-method's assumption
constexpr std::array stage_names = {"text", "denoising", "scoring", "reference", "policy", "optimizer"};

using Text = lpo::CLIPTextModel<lpo::presets::clip_l, T, Cuda>;
using Lrm = lpo::LatentRewardModel<lpo::presets::sd15, 768, 768, true, T, Cuda>;
using UNet = lpo::UNet2DCondition<lpo::presets::sd15, T, Cuda>;

/// The policy with LoRA of rank 16 and its text encoder; the reward model with its own.
struct Models {
  std::unique_ptr<UNet> unet = std::make_unique<UNet>();
  std::unique_ptr<Lrm> lrm = std::make_unique<Lrm>();
  std::unique_ptr<Text> text = std::make_unique<Text>(), reward_text = std::make_unique<Text>();
  lpo::ParameterStore<T, Cuda> store, frozen;
  lpo::ClipTextEncoder<Text> encoder{*text, std::vector<std::int32_t>(tokens, 49407)};
  lpo::ClipTextEncoder<Text> reward_encoder{*reward_text, std::vector<std::int32_t>(tokens, 49407)};

  explicit Models(lpo::Context<Cuda>& context) {
    lpo::enable_lora<T, Cuda>(*unet, 16, 16.0f);
    store.add("unet", *unet);
    store.allocate(lpo::is_lora_name);
    frozen.add("lrm", *lrm);
    frozen.add("text", *text);
    frozen.add("reward_text", *reward_text);
    frozen.allocate_frozen();
    bench::initialize_on_device(context, store, 1);
    bench::initialize_on_device(context, frozen, 2);
  }
};

/// Few prompts, so that thresholds fit those that follow: the scores of random weights differ from prompt to prompt.
lpo::PromptTokens random_prompts(index_t count) {
  lpo::RandomStream random(3, 0, 0);
  lpo::PromptTokens prompts;
  prompts.tokens = prompts.reward_tokens = tokens;
  for (index_t i = 0; i < count; ++i) {
    prompts.ids.push_back(49406);
    for (index_t k = 2; k < tokens; ++k) prompts.ids.push_back(static_cast<std::int32_t>(random.uniform_int(49000)));
    prompts.ids.push_back(49407);
  }
  prompts.reward_ids = prompts.ids;
  return prompts;
}

/// The released recipe (lpo-method C and D), with LoRA of rank 16 and thresholds that fit random weights.
lpo::LpoTrainerOptions recipe(index_t iterations) {
  lpo::LpoTrainerOptions options;
  options.max_train_iterations = iterations;
  options.sample_batch_size = prompts_per_iteration;
  options.sample_steps = steps;
  options.rollout.candidates = candidates;
  options.threshold_quantile = threshold_quantile;
  options.calibration_rollouts = 3;
  return options;
}

struct Run {
  std::vector<double> seconds, pairs;  ///< of each iteration; what it trained on
};

double mean(const std::vector<double>& values, std::size_t first) {
  return std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(first), values.end(), 0.0) /
         static_cast<double>(values.size() - first);
}

/// `options.max_train_iterations` iterations, each until the device is done.
Run train(lpo::Context<Cuda>& context, Models& models, lpo::LpoTrainerOptions options) {
  const lpo::NoiseSchedule schedule;
  Run run;
  auto start = std::chrono::steady_clock::now();
  options.on_metrics = [&](index_t, const lpo::MetricValues& values) {
    context.synchronize();
    const auto now = std::chrono::steady_clock::now();
    run.seconds.push_back(std::chrono::duration<double>(now - start).count());
    for (const auto& [name, value] : values)
      if (name == "kept") run.pairs.push_back(value);
    start = now;
  };
  lpo::LpoTrainer trainer(context, *models.unet, models.store, models.encoder, *models.lrm, models.reward_encoder,
                          schedule, lpo::Extents<3>{64, 64, 4}, std::move(options));
  trainer.train(random_prompts(prompts_per_iteration));
  return run;
}

/// The time of the arithmetic alone at 790 TFLOP/s (lpo-method G), as a share of the measured time.
double share_of_floor(double pairs, double seconds) {
  const double kept = pairs / static_cast<double>(steps * prompts_per_iteration);
  return (369.97 + 507.2 * kept) / 790.0 / seconds;
}

double gibibytes(std::size_t bytes) { return static_cast<double>(bytes) / 1073741824.0; }

void lpo_iteration(benchmark::State& state) {
  auto& context = bench::device();
  Models models(context);
  const auto repeats = static_cast<index_t>(state.max_iterations);
  const Run run = train(context, models, recipe(repeats + 2));  // the first one also calibrates and chooses algorithms
  std::size_t at = 2;
  for (auto _ : state) state.SetIterationTime(run.seconds[at++]);
  for (std::size_t i = 2; i < run.seconds.size(); ++i)
    std::printf("%.3f s with %.0f pairs\n", run.seconds[i], run.pairs[i]);
  state.counters["pairs"] = mean(run.pairs, 2);
  state.counters["of_floor"] = share_of_floor(mean(run.pairs, 2), mean(run.seconds, 2));
  // What the memory is for, in GiB. Gradients of adapters are 16-bit; masters and both moments are float.
  const auto count = [](const auto& store, bool trainable) {
    return static_cast<std::size_t>(store.parameter_count(trainable));
  };
  const std::size_t adapters = count(models.store, true);
  const std::size_t frozen = count(models.store, false) - adapters + count(models.frozen, false);
  state.counters["GiB_weights"] = gibibytes(frozen * sizeof(T));
  state.counters["GiB_adapters"] = gibibytes(adapters * (2 * sizeof(T) + 3 * sizeof(float)));
  state.counters["GiB_activations"] = gibibytes(context.activations().peak_bytes());
  state.counters["GiB_gradients"] = gibibytes(context.gradients().reserved_bytes());
  state.counters["GiB_scratch"] = gibibytes(context.scratch().peak_bytes());
  state.counters["GiB_reserved"] = gibibytes(context.reserved_bytes());
}

/// Where an iteration's time goes. The device is waited for at every change of part, so the sum is larger than the
/// whole.
void lpo_stages(benchmark::State& state) {
  auto& context = bench::device();
  Models models(context);
  auto options = recipe(static_cast<index_t>(state.max_iterations) + 1);
  std::array<double, stage_names.size()> seconds{};
  std::vector<std::array<double, stage_names.size()>> by_iteration;
  std::size_t current = 0;
  auto start = std::chrono::steady_clock::now();
  options.on_stage = [&](LpoStage stage) {
    context.synchronize();
    const auto now = std::chrono::steady_clock::now();
    seconds[current] += std::chrono::duration<double>(now - start).count();
    if (stage == LpoStage::text) by_iteration.push_back(seconds), seconds = {};
    current = static_cast<std::size_t>(stage);
    start = now;
  };
  const Run run = train(context, models, options);
  std::size_t at = 1;
  for (auto _ : state) state.SetIterationTime(run.seconds[at++]);
  state.counters["pairs"] = run.pairs[run.pairs.size() - 2];
  for (std::size_t stage = 0; stage < stage_names.size(); ++stage)
    state.counters[stage_names[stage]] = by_iteration.back()[stage];  // of the last iteration but one
}

/// Not a benchmark of its own: where the device's time goes in each part, printed once with
/// --benchmark_filter=lpo_kernels.
void lpo_kernels(benchmark::State& state) {
  lpo::Context<Cuda> context(lpo::CudaOptions{.time_kernels = true});
  Models models(context);
  auto options = recipe(2);
  std::array<std::map<std::string, lpo::KernelTime>, stage_names.size()> times;
  std::size_t current = 0;
  const auto collect = [&] {
    for (const auto& time : context.kernel_times()) {
      auto& sum = times[current][time.name];
      sum.launches += time.launches;
      sum.milliseconds += time.milliseconds;
    }
  };
  options.on_stage = [&](LpoStage stage) {
    collect();
    if (stage == LpoStage::text) times = {};  // what is left at the end is of the last iteration
    current = static_cast<std::size_t>(stage);
  };
  for (auto _ : state) train(context, models, options);
  collect();
  for (std::size_t stage = 0; stage < stage_names.size(); ++stage)
    for (const auto& [name, time] : times[stage])
      std::printf("%-10s %9.3f ms %6lld x %s\n", stage_names[stage], time.milliseconds,
                  static_cast<long long>(time.launches), name.c_str());
}

BENCHMARK(lpo_kernels)->Iterations(1);
BENCHMARK(lpo_stages)->Iterations(3)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(lpo_iteration)->Iterations(6)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace
