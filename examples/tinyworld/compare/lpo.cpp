// SPDX-License-Identifier: MIT
#include <tuple>

#include <lpo/io/latent_reward_folder.hpp>
#include <lpo/train/lpo_trainer.hpp>

#include "methods.hpp"

namespace compare {

namespace {

constexpr int sample_steps = 20, candidates = 4;

/// Thresholds as the options say; those of the demo are fitted to a quantile of the reward model's gaps.
void set_threshold(lpo::LpoTrainerOptions& trainer, const Options& o) {
  if (o.threshold == "quantile") {
    trainer.threshold_quantile = o.world.threshold_quantile;
  } else if (o.threshold == "range") {
    trainer.threshold.minimum = o.threshold_min;
    trainer.threshold.maximum = o.threshold_max;
  } else {
    trainer.threshold.mode = lpo::ThresholdMode::constant;
    trainer.threshold.constant = o.threshold_min;
  }
}

}  // namespace

void train_lpo(demo::Studio& studio, const Options& o, Recorder& recorder) {
  tw::RewardModel reward(o.world.model, studio.generator.tokenizer, static_cast<float>(o.world.lrm_guidance), 1);
  lpo::load_latent_reward_model(o.data + "/" + o.reward_model, reward.lrm, reward.store, std::tie(reward.text));
  const NetworkWork network;
  const double reward_rows = o.world.lrm_guidance == 1 ? 1 : 2, prompts = static_cast<double>(o.prompts);
  const double steps = (o.divert_end_step > 0 ? o.divert_end_step : sample_steps),
               compared = steps - o.divert_start_step;

  lpo::LpoTrainerOptions options;
  options.max_train_iterations = 1 << 20;
  options.sample_batch_size = o.prompts;
  options.train_batch_size = o.batch;
  options.micro_batch_size = 32;  // for memory: the gradients are those of the whole batch
  options.sample_steps = sample_steps;
  options.guidance_scale = o.world.guidance_scale;
  options.learning_rate = o.learning_rate;
  options.lr_scheduler = lpo::LearningRateKind::constant_with_warmup;
  options.lr_warmup_steps = 10;
  options.rollout.candidates = candidates;
  options.rollout.divert_start_step = o.divert_start_step;
  options.rollout.divert_end_step = o.divert_end_step;
  options.rollout.lrm_timestep = lpo::LrmTimestep::arrival;  // where the reward model saw such latents in training
  options.loss.beta = o.beta;
  options.max_grad_norm = 1.0;
  options.seed = o.seed;
  set_threshold(options, o);
  options.on_metrics = [&](index_t, const lpo::MetricValues& values) {
    double kept = 0;
    for (const auto& [name, value] : values)
      if (name == "kept") kept = value;
    Work work;
    work.flops = network.denoising(prompts, steps) + prompts * compared * candidates * reward_rows * network.reward +
                 2 * prompts * network.text + network.training(2 * kept);
    work.samples = kept;
    work.pictures = prompts;
    recorder.add(work);
  };

  lpo::PromptTokens tokens;
  tokens.tokens = tokens.reward_tokens = tw::text_config.positions;
  tokens.ids = tokens.reward_ids = prompt_ids(studio, o.seed, 8192);
  auto& g = studio.generator;
  lpo::LpoTrainer trainer(studio.context, g.unet, g.store, g.text_encoder, reward.lrm, reward.text_encoder, g.schedule,
                          tw::latent_extents, options);
  try {
    trainer.train(tokens, std::ref(recorder));
  } catch (const lpo::CancelledError&) {  // the recorder says when to stop
  }
}

}  // namespace compare
