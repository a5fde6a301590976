// SPDX-License-Identifier: MIT
// What score works on and what it finds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <lpo/io/image.hpp>

#include "../common/model_families.hpp"

namespace score {

/// A picture, or the latent of one.
struct Input {
  std::string name;
  lpo::RgbImage image;        ///< empty for a latent
  std::vector<float> latent;  ///< [channels, height, width], scaled as diffusion models see it
  int height = 0, width = 0;  ///< of the latent
};

struct Job {
  std::string reward_model, base_model;
  std::vector<std::string> prompts;
  std::vector<Input> inputs;
  std::vector<int> timesteps;
  double guidance = 7.5;
  int resolution = 512;  ///< pixels; also what SDXL is told
  int batch_size = 8, threads = 0, noises = 1;
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

/// One source file each, so that they compile side by side.
Scores score_tiny(const Job& job);
Scores score_sd15(const Job& job);
Scores score_sdxl(const Job& job);

struct RewardModel {
  const examples::ModelFamily* family;
  Scores (*score)(const Job&);
};
inline constexpr RewardModel reward_models[] = {
#ifdef LPO_FAMILY_SD15
    {&examples::sd15_family, score_sd15},
#endif
#ifdef LPO_FAMILY_SDXL
    {&examples::sdxl_family, score_sdxl},
#endif
    {&examples::tiny_family, score_tiny}};

/// What does not fit between a reward model's folder and a family.
inline std::vector<std::string> reward_differences(const std::string& folder, const examples::ModelFamily& family) {
  std::vector<std::string> list;
  examples::add_differences(list, folder, "unet", family.unet);
  if (lpo::file_exists(folder + "/text_encoder_2/config.json") != family.two_text_encoders) {
    list.push_back(family.two_text_encoders ? "text_encoder_2 is missing" : "text_encoder_2 is one too many");
  } else {
    examples::add_differences(list, folder, "text_encoder", family.text);
    if (family.two_text_encoders) examples::add_differences(list, folder, "text_encoder_2", family.text_2);
  }
  return list;
}

}  // namespace score
