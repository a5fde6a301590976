// SPDX-License-Identifier: MIT
// VaeConfig: the architecture of an image autoencoder as a compile-time value, and the one people have checkpoints of.
#pragma once

#include <array>
#include <cstddef>

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// Mirrors the keys of a diffusers AutoencoderKL config.json. Only the first `levels` entries of `channels` count.
struct VaeConfig {
  static constexpr int max_levels = 4;

  int in_channels = 3;
  int out_channels = 3;
  int latent_channels = 4;
  int levels = 4;  ///< number of down blocks; all but the last halve the image
  std::array<int, max_levels> channels{128, 256, 512, 512};  ///< block_out_channels
  int layers_per_block = 2;
  int groups = 32;              ///< norm_num_groups
  bool mid_attention = true;    ///< mid_block_add_attention
  bool quant_conv = true;       ///< use_quant_conv
  bool post_quant_conv = true;  ///< use_post_quant_conv

  constexpr int level_channels(int level) const { return channels[static_cast<std::size_t>(level)]; }
  constexpr int last_channels() const { return level_channels(levels - 1); }
  /// Image pixels per latent position along each axis.
  constexpr int factor() const { return 1 << (levels - 1); }

  constexpr bool operator==(const VaeConfig&) const = default;
};

namespace presets {

/// SD1.5, SD2.1 (scaling factor 0.18215) and SDXL (0.13025).
inline constexpr VaeConfig sd_vae{};

}  // namespace presets

}  // namespace lpo::inline LPO_ABI
