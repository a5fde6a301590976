// SPDX-License-Identifier: MIT
// SPO with the preference model that looks at predicted pictures.
#include <lpo/io/step_aware_preference_file.hpp>
#include <lpo/train/spo_trainer.hpp>

#include "preference.hpp"
#include "rollouts.hpp"

namespace compare {

void train_spo(demo::Studio& studio, const Options& o, Recorder& recorder) {
  Preference preference(1);
  lpo::load_preference_model(o.data + "/" + o.reward_model, preference.model, preference.store);
  Options range = o;
  if (range.divert_start_step == 0) range.divert_start_step = 4;  // SPO compares from t = 751 on
  lpo::SpoTrainerOptions options;
  const double rollout =
      set_rollout(options, range, predicted_picture_work() + vision_work(), recorder, true);
  options.threshold = {};  // SPO's constant is for the scores of its own model: thresholds are LPO's
  set_threshold(options, range, rollout, recorder);
  options.loss.beta = o.beta;
  auto& g = studio.generator;
  lpo::SpoTrainer trainer(studio.context, g.unet, g.store, g.text_encoder, g.vae, preference.model, g.schedule,
                          tw::latent_extents, options);
  train_until_stopped(trainer, prompt_tokens(studio, o), recorder);
}

}  // namespace compare
