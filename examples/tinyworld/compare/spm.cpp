// SPDX-License-Identifier: MIT
#include <functional>

#include <lpo/io/file.hpp>
#include <lpo/io/step_aware_preference_file.hpp>
#include <lpo/train/latent_pairs_file.hpp>
#include <lpo/train/lrm_trainer.hpp>
#include <lpo/train/predicted_image_model.hpp>

#include "methods.hpp"
#include "preference.hpp"
#include "prepare.hpp"

namespace compare {

void make_preference_model(const Options& o) {
  demo::Studio studio(o.world);
  const auto train = lpo::load_latent_pairs(pairs_file(o, o.world.mpcf_strategy));
  const auto held_out = lpo::load_latent_pairs(o.data + "/held-out.safetensors");
  Preference preference(o.world.seed + 1);
  auto& g = studio.generator;
  lpo::PredictedImageModel model(g.unet, g.vae, preference.model, g.schedule, o.world.guidance_scale);
  lpo::PreferenceTextEncoder text(g.text_encoder, preference.model);
  lpo::LrmTrainerOptions options;  // as for the latent reward model
  options.max_train_steps = o.spm_steps;
  options.train_batch_size = o.world.lrm_batch;
  options.batch_unit = lpo::BatchUnit::prompt;
  options.micro_batch_size = 8;
  options.learning_rate = o.spm_rate;
  options.lr_scheduler = lpo::LearningRateKind::linear;
  options.lr_warmup_steps = o.spm_steps / 20;
  options.optimizer.weight_decay = o.world.lrm_weight_decay;
  options.ema_decay = 0.99;
  options.shared_pair_noise = true;
  options.validation_steps = 0;
  options.seed = o.world.seed;
  lpo::LrmTrainer trainer(studio.context, model, text, preference.store, g.schedule, options);
  const double begin = cpu_seconds();
  const auto report = trainer.train(train, held_out, std::ref(studio.bar));
  const double end = cpu_seconds();
  const std::string folder = o.data + "/" + o.reward_model;
  lpo::save_preference_model(folder, preference.model, preference.store);

  const double captions = static_cast<double>(o.spm_steps * o.world.lrm_batch), images = 4 * captions;
  lpo::OrderedJson json;
  json["mpcf_strategy"] = o.world.mpcf_strategy;
  json["pairs"] = train.size();
  json["accuracy"] = report.validation_accuracy;
  json["cpu_seconds"] = end - begin;
  json["samples"] = captions * static_cast<double>(train.size()) / static_cast<double>(train.prompts());
  json["flops"] = images * (predicted_picture_work() + 3 * vision_work());
  lpo::write_text_file(folder + ".json", json.dump(1) + "\n");
}

}  // namespace compare
