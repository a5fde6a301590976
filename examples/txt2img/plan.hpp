// SPDX-License-Identifier: MIT
// What a job will need: shown by --dry-run before anything is read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>

#include "../common/memory_plan.hpp"
#include "pipelines.hpp"

namespace txt2img {

using examples::memory_text, examples::unet_activations, examples::vae_activations;

/// `stored`: bytes of a number in memory; the autoencoder may have its own.
inline void print_plan(const Job& job, const examples::ModelFamily& family, std::size_t stored, std::size_t stored_vae,
                       const std::string& output_dir) {
  const int factor = family.vae.factor();
  const std::size_t pictures = job.prompts.size() * static_cast<std::size_t>(job.images_per_prompt);
  std::printf("model        %s (%s)\n", job.model.path().c_str(), family.name);
  std::printf("prompts      %zu, %d pictures each: %zu pictures in %s\n", job.prompts.size(), job.images_per_prompt,
              pictures, output_dir.c_str());
  std::printf("size         %d x %d, latents %d x %d x %d\n", job.width, job.height, job.width / factor,
              job.height / factor, family.unet.in_channels);
  std::printf("storage      %s%s\n", job.dtype.c_str(), stored_vae > stored ? ", autoencoder float32" : "");
  examples::print_device_options(job.device);
  std::printf("sampler      %s, %d steps, %s prediction, %s spacing\n", display_name(job.schedule.sampler).c_str(),
              job.steps, std::string(lpo::name_of(job.schedule.prediction_type)).c_str(),
              std::string(lpo::name_of(job.schedule.timestep_spacing)).c_str());
  std::printf("guidance     %s%s\n", short_text(job.guidance_scale).c_str(),
              job.guidance_scale == 1 ? " (off: the prompt alone)" : "");
  std::printf("noise        %s, seeds %llu to %llu\n", job.torch_noise ? "torch" : "philox",
              static_cast<unsigned long long>(job.seed),
              static_cast<unsigned long long>(job.seed + static_cast<std::uint64_t>(job.images_per_prompt) - 1));
  for (const Lora& lora : job.loras)
    std::printf("lora         %s, strength %s\n", lora.path.c_str(), short_text(lora.scale).c_str());
  std::printf("weights      parameters       on disk     in memory\n");
  double total = 0, packed = 0;
  const auto component = [&](const char* name, std::size_t number_bytes) {
    const lpo::TensorTable weights = job.model.weights(name, family);
    lpo::index_t parameters = 0;
    std::size_t on_disk = 0;
    for (const std::string& key : weights.keys()) {
      parameters += weights.info(key).count();
      on_disk += weights.info(key).bytes;
    }
    const double bytes = static_cast<double>(number_bytes) * static_cast<double>(parameters);
    total += bytes;
    packed += static_cast<double>(parameters) *
              examples::packed_number_bytes(number_bytes, job.dtype == "bfloat16" && number_bytes == stored, job.device);
    std::printf("  %-16s %11lld %12s %12s\n", name, static_cast<long long>(parameters),
                memory_text(static_cast<double>(on_disk)).c_str(), memory_text(bytes).c_str());
  };
  component("text_encoder", stored);
  if (family.two_text_encoders) component("text_encoder_2", stored);
  component("unet", stored);
  component("vae", stored_vae);
  if (packed > 0) std::printf("  %-41s %12s\n", "packed, at most", memory_text(packed).c_str());
  const double rows = static_cast<double>(std::min<std::size_t>(pictures, static_cast<std::size_t>(job.batch_size))) *
                      (job.guidance_scale == 1 ? 1 : 2);
  const double denoising =
      static_cast<double>(stored) * unet_activations(family.unet, rows, job.height / factor, job.width / factor);
  const double decoding = static_cast<double>(stored_vae) * vae_activations(family.vae, job.height, job.width);
  std::printf("activations  about %s while denoising (%d rows), %s while decoding\n", memory_text(denoising).c_str(),
              static_cast<int>(rows), memory_text(decoding).c_str());
  examples::print_memory(total + packed + std::max(denoising, decoding));
}

}  // namespace txt2img
