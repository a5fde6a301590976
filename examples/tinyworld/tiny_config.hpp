// SPDX-License-Identifier: MIT
// The tiny world's widths and depths: those of its weights in model/.
#pragma once

#include <lpo/model/clip_text_config.hpp>
#include <lpo/model/clip_vision_config.hpp>
#include <lpo/model/unet_config.hpp>
#include <lpo/model/vae_config.hpp>

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

/// Towers of SPO's preference model, which looks at pictures.
inline constexpr lpo::ClipVisionConfig vision_config{.width = 64,
                                                     .hidden = 256,
                                                     .layers = 3,
                                                     .heads = 4,
                                                     .image_size = 32,
                                                     .patch = 4,
                                                     .quick_gelu = false,
                                                     .projection = 64,
                                                     .time_modulated = true};
inline constexpr lpo::ClipTextConfig preference_text_config{.vocabulary = 690,
                                                            .width = 64,
                                                            .hidden = 256,
                                                            .layers = 2,
                                                            .heads = 4,
                                                            .positions = 24,
                                                            .quick_gelu = false,
                                                            .projection = 64};

}  // namespace tinyworld
