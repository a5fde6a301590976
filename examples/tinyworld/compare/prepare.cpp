// SPDX-License-Identifier: MIT
// Makes the rated pairs and the latent reward models, and writes down what each cost.
#include "prepare.hpp"

#include <functional>
#include <tuple>

#include <lpo/io/file.hpp>
#include <lpo/io/folder_lock.hpp>
#include <lpo/io/latent_reward_folder.hpp>
#include <lpo/train/latent_pairs_file.hpp>

#include "../demo/reward_options.hpp"
#include "../demo/stages.hpp"
#include "methods.hpp"
#include "work.hpp"

namespace compare {

namespace {

namespace tw = tinyworld;

/// UNet rows of a caption's pictures with guidance: 10 + 10 + 8 + 5 steps.
constexpr double steps_per_caption = 33;

}  // namespace

void make_pairs(const Options& o) {
  demo::Options world = o.world;
  world.out = o.data;
  world.resume = true;
  lpo::make_directories(o.data);
  const lpo::FolderLock lock(o.data);
  demo::Studio studio(world);
  const bool drawn = lpo::file_exists(o.data + "/rated_pictures.safetensors");
  const double begin = cpu_seconds();
  const auto train = demo::draw_pictures(studio, world, tw::Split::train);
  const double end = cpu_seconds();
  for (int strategy = 0; strategy <= 3; ++strategy) {
    world.mpcf_strategy = strategy;
    lpo::save_latent_pairs(pairs_file(o, strategy), demo::rate(studio, world, train, tw::Split::train).latents);
  }
  const auto held_out = demo::rate_pairs(studio, world, tw::Split::validation);
  lpo::save_latent_pairs(o.data + "/held-out.safetensors", held_out.latents);
  lpo::OrderedJson json;
  json["captions"] = world.rated_captions;
  json["pictures"] = 4 * world.rated_captions;
  json["cpu_seconds"] = drawn ? 0.0 : end - begin;
  json["flops"] = NetworkWork().denoising(static_cast<double>(world.rated_captions), steps_per_caption);
  lpo::write_text_file(o.data + "/pairs.json", json.dump(1) + "\n");
}

void make_reward_model(const Options& o) {
  const demo::Options& world = o.world;
  demo::Studio studio(world);
  const auto train = lpo::load_latent_pairs(pairs_file(o, world.mpcf_strategy));
  const auto held_out = lpo::load_latent_pairs(o.data + "/held-out.safetensors");
  tw::RewardModel reward(world.model, studio.generator.tokenizer, static_cast<float>(world.lrm_guidance),
                         world.seed + 1);
  lpo::LrmTrainer trainer(studio.context, reward.lrm, reward.text_encoder, reward.store, studio.generator.schedule,
                          demo::reward_model_options(world));
  const double begin = cpu_seconds();
  trainer.train(train, {}, std::ref(studio.bar));  // held-out pairs measure it when the time has been taken
  const double end = cpu_seconds();
  const std::string folder = o.data + "/" + o.reward_model;
  lpo::make_directories(folder);
  lpo::save_latent_reward_model(folder, reward.lrm, reward.store, std::tie(reward.text));

  const NetworkWork network;
  const double rows = world.lrm_guidance == 1 ? 1 : 2;
  const double images = static_cast<double>(world.lrm_steps * world.lrm_batch) * 4;
  const double pairs_per_caption = static_cast<double>(train.size()) / static_cast<double>(train.prompts());
  lpo::OrderedJson json;
  json["guidance"] = world.lrm_guidance;
  json["mpcf_strategy"] = world.mpcf_strategy;
  json["pairs"] = train.size();
  for (const int timestep : {1, 101, 201, 301, 401, 501, 601, 701, 801, 901})
    json["accuracy_by_timestep"].push_back({timestep, trainer.accuracy(held_out, timestep)});
  json["accuracy"] = json["accuracy_by_timestep"][0][1];
  json["cpu_seconds"] = end - begin;
  json["samples"] = static_cast<double>(world.lrm_steps * world.lrm_batch) * pairs_per_caption;
  json["flops"] = 3 * (images * rows * network.reward + images / 4 * network.text);
  lpo::write_text_file(folder + ".json", json.dump(1) + "\n");
}

}  // namespace compare
