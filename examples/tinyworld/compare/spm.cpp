// SPDX-License-Identifier: MIT
// Trains SPO's preference model on the rated pairs and measures it on held-out ones.
#include <functional>

#include <lpo/io/file.hpp>
#include <lpo/io/step_aware_preference_file.hpp>
#include <lpo/train/latent_pairs_file.hpp>
#include <lpo/train/predicted_image_model.hpp>

#include "../demo/reward_options.hpp"
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
  lpo::LrmTrainerOptions options = demo::reward_model_options(o.world);
  options.max_train_steps = o.spm_steps;
  options.micro_batch_size = 8;
  options.learning_rate = o.spm_rate;
  options.lr_warmup_steps = o.spm_steps / 20;
  options.shared_pair_noise = true;
  lpo::LrmTrainer trainer(studio.context, model, text, preference.store, g.schedule, options);
  const double begin = cpu_seconds();
  trainer.train(train, {}, std::ref(studio.bar));
  const double end = cpu_seconds();
  const std::string folder = o.data + "/" + o.reward_model;
  lpo::save_preference_model(folder, preference.model, preference.store);

  const double captions = static_cast<double>(o.spm_steps * o.world.lrm_batch), images = 4 * captions;
  lpo::OrderedJson json;
  json["mpcf_strategy"] = o.world.mpcf_strategy;
  json["pairs"] = train.size();
  for (const int timestep : {1, 301, 601, 901})
    json["accuracy_by_timestep"].push_back({timestep, trainer.accuracy(held_out, timestep)});
  json["accuracy"] = json["accuracy_by_timestep"][0][1];
  json["cpu_seconds"] = end - begin;
  json["samples"] = captions * static_cast<double>(train.size()) / static_cast<double>(train.prompts());
  json["flops"] = images * (predicted_picture_work() + 3 * vision_work());
  lpo::write_text_file(folder + ".json", json.dump(1) + "\n");
}

}  // namespace compare
