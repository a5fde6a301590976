// SPDX-License-Identifier: MIT
// What the benchmarks of whole LPO iterations share: the recipe, random prompts, timed iterations, memory.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <lpo/cuda.cuh>
#include <lpo/train/lpo_trainer.hpp>

#include <cuda/device_time.cuh>
#include <cuda/random_weights.cuh>

namespace bench {

inline constexpr int lpo_steps = 20, lpo_candidates = 4;

/// LPO's objective on the two pairs of every step with the widest gaps, as bench/peers/lpo_torch.py keeps them: 40 of
/// an iteration, an assumption: the paper gives no number. A threshold would keep another number each time, or none:
/// the scores of random weights differ from prompt to prompt.
template <class T>
class WidestPairs : public lpo::PairObjective<T, Cuda> {
 public:
  using Base = lpo::PairObjective<T, Cuda>;
  using Store = lpo::PairStore<T, Cuda>;
  static constexpr bool keeps_pairs = false;  // keep() does
  static constexpr int kept_per_step = 2;

  WidestPairs(const lpo::LpoTrainerOptions& options, const lpo::NoiseSchedule& schedule, const lpo::Extents<3>& latent)
      : Base(options, schedule, lpo::micro_batch_items(options), latent),
        candidates_(options.rollout.candidates), pairs_(kept_per_step * options.sample_steps, latent) {}

  void begin_iteration() {
    Base::begin_iteration();
    pairs_.clear();
  }
  int keep(lpo::Context<Cuda>& context, const lpo::GaussianStep& step, const lpo::StepCandidates<T, Cuda>& drawn) {
    const index_t prompts = drawn.x_t.extent(0), width = drawn.x_t.size() / prompts;
    std::vector<std::pair<lpo::CandidatePair, index_t>> pairs;
    for (index_t b = 0; b < prompts; ++b) pairs.emplace_back(lpo::select_pair(drawn.scores, b, prompts, candidates_), b);
    std::sort(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.first.gap > b.first.gap; });
    const auto kept = std::min<std::size_t>(pairs.size(), kept_per_step);
    for (std::size_t i = 0; i < kept; ++i) {
      const auto& [pair, b] = pairs[i];
      const auto latent = [&](int k) { return drawn.candidates.data + (k * prompts + b) * width; };
      pairs_.append(context, {drawn.step, step.timestep, static_cast<int>(drawn.first_prompt + b), static_cast<float>(pair.gap)},
                    drawn.x_t.data + b * width, latent(pair.win), latent(pair.lose));
    }
    return static_cast<int>(kept);
  }
  const Store& items(const lpo::Rollout<T, Cuda>&) const { return pairs_; }

 private:
  int candidates_;
  Store pairs_;
};

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

/// The released recipe, with LoRA of rank 16.
inline lpo::LpoTrainerOptions recipe(index_t iterations, index_t prompts) {
  lpo::LpoTrainerOptions options;
  options.max_train_iterations = iterations;
  options.sample_batch_size = prompts;
  options.sample_steps = lpo_steps;
  options.rollout.candidates = lpo_candidates;
  options.loss_scale = 1024;  // for half; bfloat16 does not need it
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
  using UNet = std::remove_cvref_t<decltype(*models.unet)>;
  using Latent = lpo::compute_t<typename UNet::value_type>;
  using Text = std::remove_cvref_t<decltype(models.encoder)>;
  using RewardText = std::remove_cvref_t<decltype(models.reward_encoder)>;
  using Scorer = lpo::PromptedLatentScorer<std::remove_cvref_t<decltype(*models.lrm)>, RewardText>;
  const lpo::Extents<3> latent{side, side, 4};
  lpo::RolloutTrainer<UNet, Text, Scorer, WidestPairs<Latent>, Ranks> trainer(
      {"lpo", "LpoTrainer", "LPO"}, context, *models.unet, models.store, models.encoder, schedule, latent, options,
      [&](lpo::Tape<Cuda>& tape) { return Scorer(tape, *models.lrm, models.reward_encoder, options.max_rows); },
      WidestPairs<Latent>(options, schedule, latent), ranks);
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
