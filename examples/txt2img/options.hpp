// SPDX-License-Identifier: MIT
// What txt2img can be told, and what it makes of that for one model.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/diffusion/scheduler_config.hpp>

#include "../common/device_options.hpp"
#include "../common/model_source.hpp"

namespace txt2img {

/// The command line; what is absent comes from the model.
struct Options {
  std::string model, variant, tokenizer, prompt, prompt_file, negative_prompt, scheduler, prediction_type;
  std::string output_dir = "txt2img-out";
  std::string rng = "torch", dtype = "float32";
  std::vector<std::string> loras;
  int steps = 50, height = 0, width = 0, images_per_prompt = 1, batch_size = 1, threads = 0;
  std::optional<double> guidance_scale;
  double guidance_rescale = 0, eta = 0;
  examples::DeviceOptions device;
  std::uint64_t seed = 0;
  bool dry_run = false;
};

/// A file of adapters and their strength.
struct Lora {
  std::string path;
  double scale = 1;
};

/// Everything decided: what the pipelines work from.
struct Job {
  examples::ModelSource model;
  std::string dtype, negative_prompt;
  std::vector<std::string> prompts;
  std::vector<Lora> loras;
  lpo::SchedulerConfig schedule;
  int steps = 50, height = 512, width = 512, images_per_prompt = 1, batch_size = 1, threads = 0;
  double guidance_scale = 7.5, guidance_rescale = 0, eta = 0;
  examples::DeviceOptions device;
  bool torch_noise = true;
  std::uint64_t seed = 0;
};

}  // namespace txt2img
