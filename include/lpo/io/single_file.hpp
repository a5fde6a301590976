// SPDX-License-Identifier: MIT
// SingleFile: a Stable Diffusion checkpoint in one file (ldm layout), its family, and its components by diffusers'
// names.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/diffusion/scheduler_config.hpp>
#include <lpo/io/checkpoint.hpp>
#include <lpo/io/ldm_config.hpp>
#include <lpo/io/ldm_names.hpp>
#include <lpo/io/renamed_weights.hpp>

namespace lpo::inline LPO_ABI {

/// The three layouts of single-file checkpoints: SD1.x, SD2.x and SDXL.
enum class CheckpointFamily { v1, v2, xl };

inline std::string_view name_of(CheckpointFamily family) {
  constexpr std::string_view names[] = {"v1", "v2", "xl"};
  return names[static_cast<int>(family)];
}

/// Where a text encoder is kept in a single file, and how.
struct TextEncoderPlace {
  std::string prefix;
  bool open_clip = false;  ///< open_clip's layout, else transformers' names
  bool projected = false;  ///< a CLIPTextModelWithProjection
};

/// Prefixes that single files are written with.
inline constexpr const char* ldm_unet_prefix = "model.diffusion_model.";
inline constexpr const char* ldm_vae_prefix = "first_stage_model.";
inline std::vector<TextEncoderPlace> ldm_text_encoder_places(CheckpointFamily family) {
  if (family == CheckpointFamily::v1) return {{"cond_stage_model.transformer.", false, false}};
  if (family == CheckpointFamily::v2) return {{"cond_stage_model.model.", true, false}};
  return {{"conditioner.embedders.0.transformer.", false, false}, {"conditioner.embedders.1.model.", true, true}};
}

/// The tensors of a text encoder at its place.
inline std::vector<StoredWeight> text_encoder_weights(const TextEncoderPlace& place, const ClipTextConfig& c) {
  return place.open_clip ? open_clip_weights(c) : ldm_clip_weights(c);
}

/// A whole pipeline or one of its components in one file. Averaged (EMA) weights and the training code's own tables are
/// passed over. Nothing is copied. Keys lack the "state_dict." that some files put before all of them.
class SingleFile : public TensorTable {
 public:
  /// A safetensors file, or one of torch's (.ckpt). FileError if the file has no component in this layout. Some
  /// released files have bytes at their end: accepted.
  explicit SingleFile(const std::string& path) : SingleFile(open_tensor_file(path, {.allow_trailing_bytes = true})) {}

  /// The same for tensors from elsewhere.
  explicit SingleFile(const TensorTable& source) : TensorTable("checkpoint", source.path()) {
    keep(source);
    metadata_ = source.metadata();
    // Training frameworks save the weights below "state_dict", beside their own state.
    const std::vector<std::string> keys = source.keys();
    constexpr std::string_view wrapper = "state_dict.";
    const bool wrapped = std::any_of(keys.begin(), keys.end(), [&](const auto& k) { return k.starts_with(wrapper); });
    for (const std::string& key : keys) {
      if (wrapped && !key.starts_with(wrapper)) continue;
      tensors_.emplace(wrapped ? key.substr(wrapper.size()) : key, source.info(key));
    }
    find_components();
  }

  /// Told by the text encoders' layout; without them by the UNet: XL conditions on sizes, v2 on text 1024 wide. A file
  /// with an autoencoder alone could be of any family and counts as v1.
  CheckpointFamily family() const { return family_; }

  bool has_unet() const { return has_unet_; }
  bool has_vae() const { return has_vae_; }
  std::size_t text_encoders() const { return text_.size(); }

  /// What shapes say about a component; see ldm_config.hpp for what they do not.
  UNetConfig unet_config() const {
    expect(has_unet_, "UNet");
    UNetConfig c = unet_config_from_ldm(*this, unet_prefix_);
    // XL joins the pooled text with six embedded numbers; the pooled text is as wide as the last encoder's projection.
    if (c.addition_width > 0 && !text_.empty() && text_.back().projected)
      c.addition_time_width = (c.addition_width - text_encoder_config(text_.size() - 1).projection) / 6;
    return c;
  }
  VaeConfig vae_config() const {
    expect(has_vae_, "autoencoder");
    return vae_config_from_ldm(*this, vae_prefix_);
  }
  ClipTextConfig text_encoder_config(std::size_t which = 0) const {
    const TextEncoderPlace& place = text_place(which);
    return clip_text_config_from_ldm(*this, place.prefix, place.open_clip, place.projected);
  }

  /// A component's weights under diffusers' names. FileError lists what is missing and what is not part of it.
  RenamedWeights unet(const UNetConfig& c) const {
    expect(has_unet_, "UNet");
    return {*this, unet_prefix_, ldm_unet_weights(c)};
  }
  RenamedWeights vae(const VaeConfig& c) const {
    expect(has_vae_, "autoencoder");
    // Autoencoders are also published as their training left them.
    return {*this, vae_prefix_, ldm_vae_weights(c),
            [](std::string_view key) { return key.starts_with("loss.") || key.starts_with("model_ema."); }};
  }
  RenamedWeights text_encoder(const ClipTextConfig& c, std::size_t which = 0) const {
    const TextEncoderPlace& place = text_place(which);
    return {*this, place.prefix, text_encoder_weights(place, c), [&](std::string_view key) {
              if (key == "logit_scale" || key == "attn_mask" || key.ends_with("position_ids")) return true;
              if (c.projection == 0 && key.starts_with("text_projection")) return true;
              const std::string after = detail::numbered("transformer.resblocks", presets::clip_h.layers) + ".";
              return place.open_clip && c.layers == presets::clip_h.layers && key.starts_with(after);
            }};
  }

  /// What the UNet predicts, if the file says so: `modelspec.prediction_type`, or a mark that some SDXL models carry.
  std::optional<PredictionType> prediction_type() const {
    const auto said = metadata_.find("modelspec.prediction_type");
    if (said != metadata_.end())
      return said->second.starts_with("v") ? PredictionType::v_prediction : PredictionType::epsilon;
    return contains("v_pred") ? std::optional(PredictionType::v_prediction) : std::nullopt;
  }

  /// Keys that belong to no component and are not known leftovers of training.
  std::vector<std::string> other_keys() const {
    std::vector<std::string> others;
    for (const auto& [key, info] : tensors_) {
      const auto below = [&, name = std::string_view(key)](std::string_view prefix) {
        return name.starts_with(prefix);
      };
      const bool known = (has_unet_ && below(unet_prefix_)) || (has_vae_ && below(vae_prefix_)) ||
                         std::any_of(text_.begin(), text_.end(), [&](const auto& p) { return below(p.prefix); }) ||
                         below("model_ema.") || key.find('.') == std::string::npos || below("denoiser.") ||
                         below("optimizer");
      if (!known) others.push_back(key);
    }
    return others;
  }

 private:
  void expect(bool there, const char* component) const {
    if (!there) fail("has no ", component);
  }

  const TextEncoderPlace& text_place(std::size_t which) const {
    if (which >= text_.size()) fail("has ", text_.size(), " text encoders, asked for number ", which);
    return text_[which];
  }

  bool find_prefix(std::string& prefix, std::initializer_list<const char*> candidates, const char* marker) const {
    for (const char* candidate : candidates)
      if (contains(candidate + std::string(marker))) {
        prefix = candidate;
        return true;
      }
    return false;
  }

  void find_components() {
    has_unet_ = find_prefix(unet_prefix_, {ldm_unet_prefix, ""}, "input_blocks.0.0.weight");
    has_vae_ = find_prefix(vae_prefix_, {ldm_vae_prefix, "vae.", ""}, "decoder.mid.block_1.conv1.weight");
    family_ = CheckpointFamily::v1;
    for (const auto family : {CheckpointFamily::v1, CheckpointFamily::v2, CheckpointFamily::xl})
      for (const TextEncoderPlace& place : ldm_text_encoder_places(family)) {
        const char* marker =
            place.open_clip ? "token_embedding.weight" : "text_model.embeddings.token_embedding.weight";
        if (!contains(place.prefix + marker)) continue;
        text_.push_back(place);
        family_ = family;
      }
    if (text_.empty() && has_unet_) {
      const std::string context = unet_prefix_ + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight";
      if (contains(unet_prefix_ + "label_emb.0.0.weight"))
        family_ = CheckpointFamily::xl;
      else if (contains(context) && info(context).shape.size() == 2 &&
               info(context).shape[1] == presets::sd21.context_width)
        family_ = CheckpointFamily::v2;
    }
    if (has_unet_ || has_vae_ || !text_.empty()) return;
    std::vector<std::string> some;
    for (auto at = tensors_.begin(); at != tensors_.end() && some.size() < 5; ++at) some.push_back(at->first);
    const bool part = std::any_of(tensors_.begin(), tensors_.end(), [](const auto& entry) {
      return entry.first.find("down_blocks.0.") != std::string::npos || entry.first.starts_with("text_model.");
    });
    fail("has no UNet, autoencoder or text encoder in the layout of single files",
         part ? "; it looks like a component of a diffusers folder: give the folder" : "",
         "; its first keys: ", some.empty() ? std::string("none") : detail::listed(some));
  }

  bool has_unet_ = false, has_vae_ = false;
  std::string unet_prefix_, vae_prefix_;
  std::vector<TextEncoderPlace> text_;
  CheckpointFamily family_ = CheckpointFamily::v1;
};

}  // namespace lpo::inline LPO_ABI
