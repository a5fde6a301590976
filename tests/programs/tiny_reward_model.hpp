// SPDX-License-Identifier: MIT
// A folder with a reward model of the tiny world.
#pragma once

#include <memory>
#include <string>
#include <tuple>

#include <lpo/io/latent_reward_folder.hpp>
#include <tinyworld/tiny_config.hpp>

/// A reward model of the tiny world's architecture with random weights.
inline void write_reward_model(const std::string& folder, const lpo::RewardFeatureOptions& features = {}) {
  using Lrm = lpo::LatentRewardModel<tinyworld::unet_config, tinyworld::text_config.width, 128, true, float, lpo::Cpu>;
  const auto lrm = std::make_unique<Lrm>();
  const auto text = std::make_unique<lpo::CLIPTextModel<tinyworld::text_config, float, lpo::Cpu>>();
  lpo::ParameterStore<float, lpo::Cpu> store;
  lrm->use_features(features);
  store.add("", *lrm);
  store.add("text_encoder", *text);
  store.allocate_frozen();
  store.initialize(4);
  lpo::save_latent_reward_model(folder, *lrm, store, std::tie(*text));
}
