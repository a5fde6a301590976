// SPDX-License-Identifier: MIT
// What the benchmarks of whole LPO iterations share: the recipe, random prompts, timed iterations, memory.
#pragma once

#include <chrono>
#include <cstdio>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <lpo/cuda.cuh>
#include <lpo/train/lpo_trainer.hpp>

#include <cuda/device_time.cuh>
#include <cuda/random_weights.cuh>

namespace bench {

inline constexpr int lpo_steps = 20, lpo_candidates = 4;
/// Keeps about 40 of 100 pairs with random weights: lpo-method's assumption.
inline constexpr double lpo_threshold_quantile = 0.45;

/// Few prompts, so that thresholds fit those that follow: the scores of random weights differ from prompt to prompt.
inline lpo::PromptTokens random_prompts(index_t count, index_t tokens) {
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
inline lpo::LpoTrainerOptions recipe(index_t iterations, index_t prompts) {
  lpo::LpoTrainerOptions options;
  options.max_train_iterations = iterations;
  options.sample_batch_size = prompts;
  options.sample_steps = lpo_steps;
  options.rollout.candidates = lpo_candidates;
  options.threshold_quantile = lpo_threshold_quantile;
  options.calibration_rollouts = 3;
  return options;
}

struct Run {
  std::vector<double> seconds, pairs;  ///< of each iteration; what it trained on
};

inline double mean(const std::vector<double>& values, std::size_t first) {
  return std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(first), values.end(), 0.0) /
         static_cast<double>(values.size() - first);
}

/// `options.max_train_iterations` iterations on the same prompts, each until the device is done. `tokens`: ids of one.
template <class Models, class Ranks = lpo::SoloCommunicator>
Run train(lpo::Context<Cuda>& context, Models& models, lpo::LpoTrainerOptions options, index_t side, index_t tokens,
          Ranks ranks = {}) {
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
                          schedule, lpo::Extents<3>{side, side, 4}, options, ranks);
  trainer.train(random_prompts(options.sample_batch_size, tokens));
  return run;
}

inline double gibibytes(std::size_t bytes) { return static_cast<double>(bytes) / 1073741824.0; }

/// Counters of what the memory is for, in GiB.
template <class Models>
void count_memory(benchmark::State& state, lpo::Context<Cuda>& context, Models& models) {
  using T = typename Models::T;
  // Gradients of adapters are 16-bit; masters and both moments are float.
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
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  state.counters["GiB_device"] = gibibytes(total - free);  // of everything, the driver's own included
}

}  // namespace bench
