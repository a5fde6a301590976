// SPDX-License-Identifier: MIT
// ClipVisionConfig: the architecture of a CLIP vision tower as a compile-time value, and the presets of published ones.
#pragma once

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// Mirrors the keys of a transformers CLIPVisionModel config.json.
struct ClipVisionConfig {
  int width = 1024;        ///< hidden_size
  int hidden = 4096;       ///< intermediate_size
  int layers = 24;         ///< num_hidden_layers
  int heads = 16;          ///< num_attention_heads
  int image_size = 224;    ///< image_size, of a side
  int patch = 14;          ///< patch_size, of a side
  int channels = 3;        ///< num_channels
  bool quick_gelu = true;  ///< hidden_act "quick_gelu" (OpenAI) or "gelu" (OpenCLIP)
  int projection = 768;    ///< projection_dim
  bool time_modulated =
      false;  ///< every layer is shifted, scaled and gated by a time embedding (SPO's preference model)

  constexpr int patches() const { return (image_size / patch) * (image_size / patch); }
  constexpr bool operator==(const ClipVisionConfig&) const = default;
};

namespace presets {

/// CLIP ViT-L/14.
inline constexpr ClipVisionConfig clip_vision_l{};

/// OpenCLIP ViT-H/14, the tower of PickScore.
inline constexpr ClipVisionConfig clip_vision_h{
    .width = 1280, .hidden = 5120, .layers = 32, .heads = 16, .quick_gelu = false, .projection = 1024};

}  // namespace presets

}  // namespace lpo::inline LPO_ABI
