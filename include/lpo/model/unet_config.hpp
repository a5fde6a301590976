// SPDX-License-Identifier: MIT
// UNetConfig: the architecture of a conditional UNet as a compile-time value, and the presets people have checkpoints of.
#pragma once

#include <array>

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// Mirrors the keys of a diffusers UNet2DConditionModel config.json. Only the first `levels` entries of arrays count.
struct UNetConfig {
  static constexpr int max_levels = 4;

  int in_channels = 4;
  int out_channels = 4;
  int levels = 4;                                          ///< number of down blocks
  std::array<int, max_levels> channels{320, 640, 1280, 1280};  ///< block_out_channels
  int layers_per_block = 2;
  std::array<int, max_levels> transformer_depth{1, 1, 1, 0};  ///< transformer_layers_per_block; 0 = block without attention
  std::array<int, max_levels> heads{8, 8, 8, 8};              ///< number of heads (diffusers calls it attention_head_dim)
  int mid_depth = 1;                                          ///< transformer depth of the middle block
  int context_width = 768;                                    ///< cross_attention_dim
  bool linear_projection = false;                             ///< use_linear_projection
  int groups = 32;                                            ///< norm_num_groups
  int addition_time_width = 0;  ///< addition_time_embed_dim, when addition_embed_type is text_time (SDXL)
  int addition_width = 0;       ///< projection_class_embeddings_input_dim; 0 = no added conditioning

  constexpr int time_width() const { return 4 * channels[0]; }
  constexpr int level_channels(int level) const { return channels[static_cast<std::size_t>(level)]; }
  constexpr int last_channels() const { return level_channels(levels - 1); }
  /// conv_in, every layer, and a downsampling per level but the last.
  constexpr int skips() const { return 1 + levels * layers_per_block + levels - 1; }
  /// Position among the skips of level i's last layer: the feature that a latent reward model pools.
  constexpr int feature_index(int level) const { return level * (layers_per_block + 1) + layers_per_block; }
  /// Width of an LRM's concatenated features: every level, then the middle.
  constexpr int feature_width() const {
    int width = last_channels();
    for (int level = 0; level < levels; ++level) width += level_channels(level);
    return width;
  }
  /// The same of a model that pools every level, or the middle alone.
  constexpr int feature_width(bool multi_scale) const { return multi_scale ? feature_width() : last_channels(); }

  constexpr bool operator==(const UNetConfig&) const = default;
};

namespace presets {

/// Stable Diffusion 1.x: 64x64x4 latents at 512 pixels.
inline constexpr UNetConfig sd15{};

/// SD2.1, base and 768-v alike: that the latter predicts v is told by its scheduler's config.
inline constexpr UNetConfig sd21{.heads = {5, 10, 20, 20}, .context_width = 1024, .linear_projection = true};

/// Stable Diffusion XL's base model: 128x128x4 latents at 1024 pixels, with added conditioning.
inline constexpr UNetConfig sdxl{.levels = 3,
                                 .channels = {320, 640, 1280, 0},
                                 .transformer_depth = {0, 2, 10, 0},
                                 .heads = {5, 10, 20, 0},
                                 .mid_depth = 10,
                                 .context_width = 2048,
                                 .linear_projection = true,
                                 .addition_time_width = 256,
                                 .addition_width = 2816};

}  // namespace presets

}  // namespace lpo::inline LPO_ABI
