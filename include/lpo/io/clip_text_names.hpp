// SPDX-License-Identifier: MIT
// The two spellings of a CLIP text model's weights: transformers 5 saves them without the outer module "text_model".
#pragma once

#include <string>
#include <string_view>

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI::detail {

inline constexpr std::string_view clip_text_module = "text_model.";

/// "text_model.encoder.…" -> "encoder.…"; "" for names that have no such module ("text_projection.weight").
inline std::string bare_clip_text_name(const std::string& name) {
  return name.starts_with(clip_text_module) ? name.substr(clip_text_module.size()) : "";
}

/// Whether a key is one of a text model saved without its outer module.
inline bool is_bare_clip_text_name(std::string_view key) {
  return key.starts_with("embeddings.") || key.starts_with("encoder.layers.") || key.starts_with("final_layer_norm.");
}

/// The name with the outer module, which published checkpoints and LoRA files use.
inline std::string full_clip_text_name(const std::string& key) {
  return is_bare_clip_text_name(key) ? std::string(clip_text_module) + key : key;
}

}  // namespace lpo::inline LPO_ABI::detail
