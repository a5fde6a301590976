// SPDX-License-Identifier: MIT
// Step-wise GRPO with the latent reward model.
#include <lpo/train/grpo_trainer.hpp>

#include "rollouts.hpp"

namespace compare {

void train_grpo(demo::Studio& studio, const Options& o, Recorder& recorder) {
  tw::RewardModel reward(o.world.model, studio.generator.tokenizer, static_cast<float>(o.world.lrm_guidance), 1);
  load_reward_model(reward, o);
  lpo::GrpoTrainerOptions options;
  set_rollout(options, o, reward_work(o), recorder);
  options.loss.beta = o.beta;
  auto& g = studio.generator;
  lpo::GrpoTrainer trainer(studio.context, g.unet, g.store, g.text_encoder, reward.lrm, reward.text_encoder, g.schedule,
                           tw::latent_extents, options);
  train_until_stopped(trainer, prompt_tokens(studio, o), recorder);
}

}  // namespace compare
