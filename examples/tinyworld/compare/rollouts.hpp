// SPDX-License-Identifier: MIT
// What the methods that roll out and score with the latent reward model have in common.
#pragma once

#include <functional>
#include <tuple>

#include <lpo/io/latent_reward_folder.hpp>
#include <lpo/train/pair_objective.hpp>

#include "methods.hpp"

namespace compare {

/// The reward model that the options name.
inline void load_reward_model(tw::RewardModel& reward, const Options& o) {
  lpo::load_latent_reward_model(o.data + "/" + o.reward_model, reward.lrm, reward.store, std::tie(reward.text));
}

inline lpo::PromptTokens prompt_tokens(const demo::Studio& studio, const Options& o) {
  lpo::PromptTokens tokens;
  tokens.tokens = tokens.reward_tokens = tw::text_config.positions;
  tokens.ids = tokens.reward_ids = prompt_ids(studio, o.seed, 8192);
  return tokens;
}

/// Options and costs: `scoring` are the operations of scoring one candidate. With `foresight` scoring includes the
/// prediction with which the chain goes on. The recorder must outlive the trainer. Returns the operations of a roll-out.
inline double set_rollout(lpo::RolloutTrainerOptions& trainer, const Options& o, double scoring, Recorder& recorder,
                          bool foresight = false) {
  trainer.max_train_iterations = 1 << 20;
  trainer.sample_batch_size = o.prompts;
  trainer.train_batch_size = o.batch;
  trainer.micro_batch_size = 32;  // for memory: the gradients are those of the whole batch
  trainer.guidance_scale = o.world.guidance_scale;
  trainer.learning_rate = o.learning_rate;
  trainer.lr_scheduler = lpo::LearningRateKind::constant_with_warmup;
  trainer.lr_warmup_steps = 10;
  trainer.rollout.divert_start_step = o.divert_start_step;
  trainer.rollout.divert_end_step = o.divert_end_step;
  trainer.rollout.lrm_timestep = lpo::LrmTimestep::arrival;  // where the reward model saw such latents in training
  trainer.max_grad_norm = 1.0;
  trainer.seed = o.seed;
  const NetworkWork network;
  const double steps = o.divert_end_step > 0 ? o.divert_end_step : trainer.sample_steps;
  const double prompts = static_cast<double>(o.prompts);
  const double candidates = prompts * (steps - o.divert_start_step) * trainer.rollout.candidates;
  const double denoised = foresight ? o.divert_start_step + 1 : steps;
  const double sampling = network.denoising(prompts, denoised) + candidates * scoring + 2 * prompts * network.text;
  trainer.on_metrics = [=, &recorder](index_t, const lpo::MetricValues& values) {
    double kept = 0;
    for (const auto& [name, value] : values)
      if (name == "kept") kept = value;
    recorder.add({.flops = sampling + network.training(2 * kept), .samples = kept, .pictures = prompts});
  };
  return sampling;
}

/// Thresholds as the options say; those of the demo are fitted to a quantile of the reward model's gaps, in a roll-out
/// that costs `rollout` operations.
inline void set_threshold(lpo::LpoTrainerOptions& trainer, const Options& o, double rollout, Recorder& recorder) {
  if (o.threshold == "quantile") {
    trainer.threshold_quantile = o.world.threshold_quantile;
    trainer.calibration_rollouts = 1;  // SPO's are slow
    recorder.add({.flops = rollout, .samples = 0, .pictures = static_cast<double>(o.prompts)});
  } else if (o.threshold == "range") {
    trainer.threshold.minimum = o.threshold_min;
    trainer.threshold.maximum = o.threshold_max;
  } else {
    trainer.threshold.mode = lpo::ThresholdMode::constant;
    trainer.threshold.constant = o.threshold_min;
  }
}

/// Operations of scoring one candidate with the latent reward model.
inline double reward_work(const Options& o) { return (o.world.lrm_guidance == 1 ? 1 : 2) * NetworkWork().reward; }

/// Trains until the recorder says stop.
template <class Trainer>
void train_until_stopped(Trainer& trainer, const lpo::PromptTokens& prompts, Recorder& recorder) {
  try {
    trainer.train(prompts, std::ref(recorder));
  } catch (const lpo::CancelledError&) {  // the recorder says when to stop
  }
}

}  // namespace compare
