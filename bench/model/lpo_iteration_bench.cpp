// SPDX-License-Identifier: MIT
// One LPO iteration at Stable Diffusion 1.5's full size on the CPU, random weights: 1 prompt, 4 steps, 4 candidates,
// all 4 pairs. bench/peers/lpo_torch.py --device cpu is the same in PyTorch. Needs 10 GiB.
#include <sys/resource.h>

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include <lpo/lpo.hpp>
#include <lpo/train/clip_text_encoder.hpp>
#include <lpo/train/lpo_trainer.hpp>

#include <backend/peak.hpp>
#include <model/random_start.hpp>

namespace {

using lpo::Cpu;
using lpo::index_t;

constexpr index_t tokens = 77;
constexpr std::array stage_names = {"text", "denoising", "scoring", "reference", "policy", "optimizer"};

// A template over the storage would compile twice as long.
#if !defined(LPO_BENCH_STORAGE)
#  define LPO_BENCH_STORAGE float  // or lpo::bfloat16
#endif

/// The policy with LoRA of rank 16 and its text encoder; the reward model with its own.
struct Models {
  using T = LPO_BENCH_STORAGE;
  using Text = lpo::CLIPTextModel<lpo::presets::clip_l, T, Cpu>;
  using Lrm = lpo::LatentRewardModel<lpo::presets::sd15, 768, 768, true, T, Cpu>;
  using UNet = lpo::UNet2DCondition<lpo::presets::sd15, T, Cpu>;

  std::unique_ptr<UNet> unet = std::make_unique<UNet>();
  std::unique_ptr<Lrm> lrm = std::make_unique<Lrm>();
  std::unique_ptr<Text> text = std::make_unique<Text>();
  lpo::ParameterStore<T, Cpu> store, frozen;
  lpo::ClipTextEncoder<Text> encoder{*text, std::vector<std::int32_t>(tokens, 49407)};

  Models() {
    lpo::enable_lora<T, Cpu>(*unet, 16, 16.0f);
    store.add("unet", *unet);
    store.allocate(lpo::is_lora_name);
    frozen.add("lrm", *lrm);
    frozen.add("text", *text);
    frozen.allocate_frozen();
    bench::RandomStart random;
    random.draw(store);
    random.draw(frozen);
  }
};

lpo::PromptTokens one_prompt() {
  lpo::PromptTokens prompt;
  prompt.tokens = prompt.reward_tokens = tokens;
  prompt.ids.assign(tokens, 320);
  prompt.ids.front() = 49406;
  prompt.ids.back() = 49407;
  prompt.reward_ids = prompt.ids;
  return prompt;
}

double largest_resident_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1048576.0;
}

/// Arguments: threads, pairs of a training pass, whether frozen weights stay packed. Counters: the seconds of each part of
/// the last iteration, the GiB of the context's arenas and the most that was resident so far.
void lpo_iteration(benchmark::State& state) {
  lpo::Context<Cpu> context(static_cast<int>(state.range(0)));
  Models models;
  std::optional<lpo::KeepPacked<Models::T, Cpu>> packed_policy, packed_frozen;
  if (state.range(2) != 0) packed_policy.emplace(context, models.store), packed_frozen.emplace(context, models.frozen);
  lpo::LpoTrainerOptions options;
  options.max_train_iterations = 1 + static_cast<index_t>(state.max_iterations);  // the first maps pages and packs weights
  options.sample_batch_size = 1;
  options.sample_steps = 4;
  options.rollout.candidates = 4;
  options.threshold.mode = lpo::ThresholdMode::constant;
  options.threshold.constant = 0.0;  // keeps every pair
  options.micro_batch_size = state.range(1);
  std::vector<double> seconds;
  std::array<double, stage_names.size()> parts{}, last{};
  std::size_t current = 0;
  auto begin = std::chrono::steady_clock::now(), start = begin;
  options.on_stage = [&](lpo::LpoStage stage) {
    const auto now = std::chrono::steady_clock::now();
    parts[current] += std::chrono::duration<double>(now - start).count();
    current = static_cast<std::size_t>(stage);
    start = now;
  };
  options.on_metrics = [&](index_t, const lpo::MetricValues& values) {
    options.on_stage(lpo::LpoStage::text);
    seconds.push_back(std::chrono::duration<double>(start - begin).count());
    begin = start;
    last = parts;
    parts = {};
    for (const auto& [name, value] : values)
      if (name == "kept") state.counters["pairs"] = value;
  };
  const lpo::NoiseSchedule schedule;
  lpo::LpoTrainer trainer(context, *models.unet, models.store, models.encoder, *models.lrm, models.encoder, schedule,
                          lpo::Extents<3>{64, 64, 4}, options);
  trainer.train(one_prompt());
  std::size_t at = 1;
  for (auto _ : state) state.SetIterationTime(seconds[at++]);
  for (std::size_t i = 0; i < stage_names.size(); ++i) state.counters[stage_names[i]] = last[i];
  state.counters["GiB"] = static_cast<double>(context.reserved_bytes()) / 1073741824.0;
  state.counters["resident_GiB"] = largest_resident_gib();
}

void threads(benchmark::internal::Benchmark* benchmark) {
  for (const index_t pairs : {1, 4})
    for (const index_t packed : {0, 1}) benchmark->Args({bench::thread_counts().back(), pairs, packed});
  benchmark->ArgNames({"threads", "pairs", "packed"})->Iterations(1)->UseManualTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK(lpo_iteration)->Apply(threads);

}  // namespace
