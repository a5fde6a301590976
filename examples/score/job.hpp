// SPDX-License-Identifier: MIT
// What score works on and what it finds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <lpo/io/image.hpp>
#include <lpo/reward/latent_reward_model.hpp>

#include "../common/device_options.hpp"
#include "../common/model_source.hpp"

namespace score {

/// A picture, or the latent of one.
struct Input {
  std::string name;
  lpo::RgbImage image;        ///< empty for a latent
  std::vector<float> latent;  ///< [channels, height, width], scaled as diffusion models see it
  int height = 0, width = 0;  ///< of the latent
};

struct Job {
  std::string reward_model;
  examples::ModelSource base_model;
  std::vector<std::string> prompts;
  std::vector<Input> inputs;
  std::vector<int> timesteps;
  lpo::RewardFeatureOptions features;
  int resolution = 512;  ///< pixels; also what SDXL is told
  int batch_size = 8, threads = 0, noises = 1;
  examples::DeviceOptions device;
  std::uint64_t seed = 0;
  bool torch_noise = true;
  bool noisy_latents = false;  ///< latents are x_t already
};

/// One number per input, prompt and timestep, in this order of nesting.
struct Scores {
  std::vector<float> values;
  std::size_t prompts = 0, timesteps = 0;

  float& at(std::size_t input, std::size_t prompt, std::size_t timestep) {
    return values[(input * prompts + prompt) * timesteps + timestep];
  }
  float at(std::size_t input, std::size_t prompt, std::size_t timestep) const {
    return values[(input * prompts + prompt) * timesteps + timestep];
  }
};

/// Scores of every input under every prompt at every timestep, by a reward model of family F.
template <const examples::ModelFamily& F>
Scores score_inputs(const Job& job);

}  // namespace score
