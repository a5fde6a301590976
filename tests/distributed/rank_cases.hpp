// SPDX-License-Identifier: MIT
// What ranks must give, whatever brings them together: the trainers' weights and logs are those of one rank.
#pragma once

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <lpo/distributed/collectives.hpp>

#include <lpo/train/dpo_trainer.hpp>

#include "../train/small_world.hpp"

namespace rank_cases {

/// What a run leaves behind.
struct Outcome {
  std::vector<float> weights;
  double accuracy = 0;                   ///< of the reward model's validation
  std::vector<lpo::MetricValues> lines;  ///< of the log, on rank 0
};

/// Options under which updates are nearly proportional to gradients, so that rounding stays rounding.
inline lpo::AdamWOptions smooth_adamw() { return {.beta1 = 0.9, .beta2 = 0.999, .epsilon = 0.1, .weight_decay = 0.01}; }

inline lpo::LrmTrainerOptions lrm_options(const std::string& folder = "") {
  auto options = small_world::lrm_options(folder);
  options.train_batch_size = 5;
  options.optimizer = smooth_adamw();
  options.learning_rate = 0.05;
  options.ema_decay = 0.5;
  return options;
}

template <class Ranks>
Outcome train_lrm(lpo::Context<small_world::Device>& context, Ranks ranks, lpo::LrmTrainerOptions options,
                  const lpo::LatentPairs& pairs, const lpo::ProgressCallback& progress = {}) {
  small_world::Reward reward;
  const lpo::NoiseSchedule schedule;
  Outcome outcome;
  options.on_metrics = [&](lpo::index_t, const lpo::MetricValues& line) { outcome.lines.push_back(line); };
  lpo::LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, options, ranks);
  outcome.accuracy = trainer.train(pairs, small_world::random_pairs(22, 12), progress).validation_accuracy;
  outcome.weights = small_world::weights(reward.store);
  return outcome;
}

inline lpo::DpoTrainerOptions dpo_options(const std::string& folder = "") {
  lpo::DpoTrainerOptions options;
  options.max_train_steps = 6;
  options.train_batch_size = 5;
  options.micro_batch_size = 2;
  options.beta_dpo = 50;
  options.optimizer = smooth_adamw();
  options.learning_rate = 0.05;
  options.lr_warmup_steps = 0;
  options.checkpointing_steps = 2;
  options.seed = 21;
  options.output_dir = folder;
  return options;
}

template <class T, class Ranks>
Outcome train_dpo(lpo::Context<small_world::Device>& context, Ranks ranks, lpo::DpoTrainerOptions options,
                  const lpo::ProgressCallback& progress = {}) {
  small_world::PolicyIn<T> policy;
  const lpo::NoiseSchedule schedule;
  Outcome outcome;
  options.on_metrics = [&](lpo::index_t, const lpo::MetricValues& line) { outcome.lines.push_back(line); };
  lpo::DpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, schedule, options, ranks);
  trainer.train(small_world::random_pairs(1, 9), progress);
  for (const T& value : small_world::weights(policy.store)) outcome.weights.push_back(static_cast<float>(value));
  return outcome;
}

inline lpo::LpoTrainerOptions lpo_options(const std::string& folder = "") {
  auto options = small_world::lpo_options(folder);
  options.sample_batch_size = 5;
  options.loss.beta = 20;  // 500 clips most pairs after a step, and what is clipped hangs on the last bit
  options.optimizer = smooth_adamw();
  options.optimizer.epsilon = 1.0;
  options.learning_rate = 0.05;
  return options;
}

/// Trainer: LpoTrainer or GrpoTrainer.
template <template <class...> class Trainer, class Ranks, class Options>
Outcome train_on_rollouts(lpo::Context<small_world::Device>& context, Ranks ranks, Options options,
                          const lpo::ProgressCallback& progress = {}, lpo::RolloutTrainerReport* report = nullptr,
                          bool broken_scores = false) {
  using namespace small_world;
  Policy policy;
  Reward reward;
  if (broken_scores) {
    const float nothing = std::nanf("");
    lpo::DeviceMemory<Device>::copy_from_host(reward.lrm.logit_scale.data(), &nothing, sizeof nothing);
  }
  const lpo::NoiseSchedule schedule;
  Outcome outcome;
  options.on_metrics = [&](lpo::index_t, const lpo::MetricValues& line) { outcome.lines.push_back(line); };
  const lpo::Extents<3> latent{4, 4, 4};
  Trainer<UNet, Lrm, Encoder, Encoder, Ranks> trainer(context, policy.unet, policy.store, policy.encoder, reward.lrm,
                                                      reward.encoder, schedule, latent, options, ranks);
  const auto done = trainer.train(prompts(), progress);
  if (report != nullptr) *report = done;
  outcome.weights = weights(policy.store);
  return outcome;
}

inline double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return largest;
}

/// The largest relative difference between numbers of two logs; infinite when they have other names.
inline double largest_difference(const std::vector<lpo::MetricValues>& a, const std::vector<lpo::MetricValues>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double largest = 0;
  for (std::size_t line = 0; line < a.size(); ++line) {
    if (a[line].size() != b[line].size()) return HUGE_VAL;
    for (std::size_t i = 0; i < a[line].size(); ++i) {
      const auto& [name, x] = a[line][i];
      const auto& [other_name, y] = b[line][i];
      if (name != other_name) return HUGE_VAL;
      largest = std::max(largest, std::fabs(x - y) / std::max(1.0, std::fabs(x)));
    }
  }
  return largest;
}

}  // namespace rank_cases
