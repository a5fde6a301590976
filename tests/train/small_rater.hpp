// SPDX-License-Identifier: MIT
// A small step-aware preference model with an autoencoder: what SPO's trainer rates the small world's candidates with.
#pragma once

#include <vector>

#include <lpo/train/spo_trainer.hpp>

#include "small_world.hpp"

namespace small_world {

inline constexpr lpo::VaeConfig rater_vae_config{.levels = 2,
                                                 .channels = {8, 8, 0, 0},
                                                 .layers_per_block = 1,
                                                 .groups = 4,
                                                 .mid_attention = false};  // latents 4 x 4 -> pictures 8 x 8
inline constexpr lpo::ClipVisionConfig rater_tower{.width = 16,
                                                   .hidden = 32,
                                                   .layers = 1,
                                                   .heads = 2,
                                                   .image_size = 12,
                                                   .patch = 4,
                                                   .quick_gelu = false,
                                                   .projection = 10,
                                                   .time_modulated = true};
inline constexpr lpo::ClipTextConfig rater_words{.vocabulary = 20,
                                                 .width = 12,
                                                 .hidden = 24,
                                                 .layers = 1,
                                                 .heads = 2,
                                                 .positions = 6,
                                                 .quick_gelu = false,
                                                 .projection = 10};

using Vae = lpo::AutoencoderKL<rater_vae_config, float, Device>;
using Preference = lpo::StepAwarePreferenceModel<rater_tower, rater_words, float, Device>;

struct Rater {
  Vae vae;
  Preference model;
  Store vae_store, store;

  Rater() {
    vae_store.add("vae", vae);
    vae_store.allocate_frozen();
    vae_store.initialize(7);
    store.add("", model);
    store.allocate_all_trainable();
    store.initialize(8);
    model.vision.open_gates();
    // A model whose modulation is no longer 0, so that times matter.
    auto& modulation = model.vision.layers[0].modulation.weight;
    std::vector<float> values(static_cast<std::size_t>(modulation.size()));
    lpo::DeviceMemory<Device>::copy_to_host(values.data(), modulation.data(), values.size() * sizeof(float));
    for (float& value : values) value += 0.02f;
    lpo::DeviceMemory<Device>::copy_from_host(modulation.data(), values.data(), values.size() * sizeof(float));
  }
};

/// Of a roll-out that keeps every pair but those of its first step.
inline lpo::SpoTrainerOptions spo_options(const lpo::RolloutTrainerOptions& options) {
  lpo::SpoTrainerOptions o;
  static_cast<lpo::RolloutTrainerOptions&>(o) = options;
  o.rollout.divert_start_step = 1;
  o.threshold.constant = 0;
  return o;
}

/// The policy's training by such a rater.
template <class Ranks = lpo::SoloCommunicator>
lpo::LpoTrainerReport train_spo(lpo::Context<Device>& context, Policy& policy, const lpo::SpoTrainerOptions& options,
                                const lpo::ProgressCallback& progress = {}, Ranks ranks = {}) {
  Rater rater;
  const lpo::NoiseSchedule schedule;
  lpo::SpoTrainer trainer(context, policy.unet, policy.store, policy.encoder, rater.vae, rater.model, schedule,
                          lpo::Extents<3>{4, 4, 4}, options, ranks);
  return trainer.train(prompts(), progress);
}

}  // namespace small_world
