// SPDX-License-Identifier: MIT
// The stage that aligns the model: LPO with the trained reward model.
#include <lpo/train/lpo_trainer.hpp>

#include "stages.hpp"

namespace demo {

void align(Studio& studio, const Options& o, tw::RewardModel& reward, tw::DemoReport& report) {
  lpo::LpoTrainerOptions options;
  options.max_train_iterations = o.iterations;
  options.sample_batch_size = o.prompts_per_iteration;
  options.train_batch_size = o.train_batch;
  options.micro_batch_size = 32;  // for memory: the gradients are those of the whole batch
  options.guidance_scale = o.guidance_scale;
  options.learning_rate = o.lpo_rate;
  options.lr_scheduler = lpo::LearningRateKind::constant_with_warmup;
  options.lr_warmup_steps = 10;
  options.rollout.lrm_timestep = lpo::LrmTimestep::arrival;  // where the reward model saw such latents in training
  options.threshold_quantile = o.threshold_quantile;
  options.loss.beta = o.beta;
  options.max_grad_norm = 1.0;
  options.checkpointing_iterations = 10;
  options.checkpoints_total_limit = 1;
  options.seed = o.seed;
  options.output_dir = o.out + "/lpo";
  options.resume = o.resume;

  lpo::PromptTokens prompts;
  prompts.tokens = prompts.reward_tokens = tw::text_config.positions;
  for (const auto& caption : sample_captions(o.seed + 500, o.iterations * o.prompts_per_iteration, tw::Split::train)) {
    const auto ids = studio.generator.tokenizer.encode(caption);
    prompts.ids.insert(prompts.ids.end(), ids.begin(), ids.end());
  }
  prompts.reward_ids = prompts.ids;

  auto& g = studio.generator;
  lpo::LpoTrainer trainer(studio.context, g.unet, g.store, g.text_encoder, reward.lrm, reward.text_encoder, g.schedule,
                          tw::latent_extents, options);
  const auto result = trainer.train(prompts, std::ref(studio.bar));
  const std::string log = options.output_dir + "/metrics.jsonl";
  report.lpo_loss = lpo::read_metric(log, "train_loss");
  report.implicit_accuracy = lpo::read_metric(log, "implicit_acc");
  report.margin = lpo::read_metric(log, "train_margin");
  report.reward = lpo::read_metric(log, "reward_mean");
  report.kept = lpo::read_metric(log, "kept");
  report.timesteps = result.timesteps;
  report.thresholds = result.thresholds;
  for (std::size_t i = 0; i < result.kept_per_step.size(); ++i)
    report.kept_share.push_back(result.drawn_per_step[i] > 0 ? result.kept_per_step[i] / result.drawn_per_step[i] : 0.0);
  report.lpo_iterations = result.iterations;
  report.lpo_optimizer_steps = result.optimizer_steps;
  report.lpo_pairs = result.pairs;
  lpo::save_lora(o.out + "/pytorch_lora_weights.safetensors", g.unet);
}

}  // namespace demo
