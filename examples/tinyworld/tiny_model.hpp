// SPDX-License-Identifier: MIT
// The tiny world's model: the same classes, names and files as Stable Diffusion, at widths that two CPU cores can train.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <lpo/io/clip_tokenizer.hpp>
#include <lpo/train/clip_text_encoder.hpp>
#include <lpo/train/latent_scorer.hpp>

#include "../common/device.hpp"
#include "tiny_config.hpp"

namespace tinyworld {

using Device = examples::Device;
using Vae = lpo::AutoencoderKL<vae_config, float, Device>;
using Text = lpo::CLIPTextModel<text_config, float, Device>;
using UNet = lpo::UNet2DCondition<unet_config, float, Device>;
using Lrm = lpo::LatentRewardModel<unet_config, text_config.width, 128, true, float, Device>;
using TextEncoder = lpo::ClipTextEncoder<Text>;
using Store = lpo::ParameterStore<float, Device>;

inline constexpr lpo::index_t image_size = 32, latent_size = 8, latent_channels = 4;
inline const lpo::Extents<3> latent_extents{latent_size, latent_size, latent_channels};

/// Schedule of Stable Diffusion, with the offset and spacing of its DDIM sampler.
inline lpo::SchedulerConfig scheduler_config() { return {}; }

}  // namespace tinyworld
