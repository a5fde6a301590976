// SPDX-License-Identifier: MIT
// ClipTextConfig: the architecture of a CLIP text encoder as a compile-time value, and the presets of Stable Diffusion.
#pragma once

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// Mirrors the keys of a transformers CLIPTextModel config.json.
struct ClipTextConfig {
  int vocabulary = 49408;  ///< vocab_size
  int width = 768;         ///< hidden_size
  int hidden = 3072;       ///< intermediate_size
  int layers = 12;         ///< num_hidden_layers
  int heads = 12;          ///< num_attention_heads
  int positions = 77;      ///< max_position_embeddings
  bool quick_gelu = true;  ///< hidden_act "quick_gelu" (OpenAI) or "gelu" (OpenCLIP)
  int projection = 0;      ///< projection_dim of a CLIPTextModelWithProjection; 0 = CLIPTextModel, without projection

  constexpr bool operator==(const ClipTextConfig&) const = default;
};

namespace presets {

/// CLIP ViT-L/14: the text encoder of SD1.5 and the first one of SDXL.
inline constexpr ClipTextConfig clip_l{};

/// OpenCLIP ViT-H as SD2.1 ships it: the last of its 24 layers is left out.
inline constexpr ClipTextConfig clip_h{.width = 1024, .hidden = 4096, .layers = 23, .heads = 16, .quick_gelu = false};

/// OpenCLIP ViT-bigG with projection: the second text encoder of SDXL.
inline constexpr ClipTextConfig clip_bigg{
    .width = 1280, .hidden = 5120, .layers = 32, .heads = 20, .quick_gelu = false, .projection = 1280};

}  // namespace presets

}  // namespace lpo::inline LPO_ABI
