// SPDX-License-Identifier: MIT
// The tiny world's model: the same classes, names and files as Stable Diffusion, at widths that two CPU cores can train.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <lpo/io/clip_tokenizer.hpp>
#include <lpo/lpo.hpp>
#include <lpo/train/clip_text_encoder.hpp>
#include <lpo/train/latent_scorer.hpp>

namespace tinyworld {

inline constexpr lpo::VaeConfig vae_config{.levels = 3,
                                           .channels = {16, 32, 32, 0},
                                           .layers_per_block = 1,
                                           .groups = 8,
                                           .mid_attention = false};  // 32x32x3 -> 8x8x4

inline constexpr lpo::ClipTextConfig text_config{
    .vocabulary = 690, .width = 64, .hidden = 256, .layers = 2, .heads = 4, .positions = 24};

inline constexpr lpo::UNetConfig unet_config{.levels = 3,
                                             .channels = {32, 64, 96, 0},
                                             .layers_per_block = 1,
                                             .transformer_depth = {1, 1, 1, 0},
                                             .heads = {4, 4, 4, 0},
                                             .mid_depth = 1,
                                             .context_width = 64,
                                             .groups = 16};

using Device = lpo::Cpu;
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
