// SPDX-License-Identifier: MIT
// The other way from diffusers_config.hpp: architectures, as values at run time, from config.json files.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <lpo/io/diffusers_config.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// The first entries of a per-level list as the array of a config. FileError if there are too many levels.
template <class Array>
void copy_levels(const JsonConfig& file, const char* key, const std::vector<int>& values, Array& array) {
  if (values.empty() || values.size() > array.size())
    throw FileError(message("[config] ", file.name(), ": ", key, " has ", values.size(), " levels, expected 1 to ",
                            array.size()));
  array = {};
  for (std::size_t i = 0; i < values.size(); ++i) array[i] = values[i];
}

}  // namespace detail

/// The architecture of a diffusers UNet. FileError lists every setting that lpo's UNets cannot have.
inline UNetConfig unet_config_from_json(const JsonConfig& file) {
  const detail::CanonicalConfig all = detail::canonical_unet(file);
  UNetConfig c;
  const auto channels = file.get_or<std::vector<int>>("block_out_channels", {320, 640, 1280, 1280});
  detail::copy_levels(file, "block_out_channels", channels, c.channels);
  c.levels = static_cast<int>(channels.size());
  const char* heads = file.has("num_attention_heads") ? "num_attention_heads" : "attention_head_dim";
  detail::copy_levels(file, heads, file.get_per_level_or<int>(heads, channels.size(), 8), c.heads);
  detail::copy_levels(file, "transformer_layers_per_block",
                      all.at("transformer_layers_per_block").get<std::vector<int>>(), c.transformer_depth);
  c.layers_per_block = file.get_per_level_or<int>("layers_per_block", channels.size(), 2).front();
  c.context_width = file.get_per_level_or<int>("cross_attention_dim", channels.size(), 1280).front();
  c.mid_depth = all.at("mid_transformer_layers").get<int>();
  c.in_channels = file.get_or("in_channels", 4);
  c.out_channels = file.get_or("out_channels", 4);
  c.linear_projection = file.get_or("use_linear_projection", false);
  c.groups = file.get_or("norm_num_groups", 32);
  if (file.get_or<std::string>("addition_embed_type", "") == "text_time") {
    c.addition_time_width = file.get<int>("addition_time_embed_dim");
    c.addition_width = file.get<int>("projection_class_embeddings_input_dim");
  }
  // What is lost on the way here and back is what lpo has no place for.
  detail::expect_same_config(file.name(), all, detail::canonical_unet(unet_json(c)), "any UNet of lpo");
  return c;
}

/// The same for an autoencoder.
inline VaeConfig vae_config_from_json(const JsonConfig& file) {
  VaeConfig c;
  const auto channels = file.get_or<std::vector<int>>("block_out_channels", {64});
  detail::copy_levels(file, "block_out_channels", channels, c.channels);
  c.levels = static_cast<int>(channels.size());
  c.in_channels = file.get_or("in_channels", 3);
  c.out_channels = file.get_or("out_channels", 3);
  c.latent_channels = file.get_or("latent_channels", 4);
  c.layers_per_block = file.get_or("layers_per_block", 1);
  c.groups = file.get_or("norm_num_groups", 32);
  c.mid_attention = file.get_or("mid_block_add_attention", true);
  c.quant_conv = file.get_or("use_quant_conv", true);
  c.post_quant_conv = file.get_or("use_post_quant_conv", true);
  detail::expect_same_config(file.name(), detail::canonical_vae(file), detail::canonical_vae(vae_json(c, 1.0)),
                             "any autoencoder of lpo");
  return c;
}

/// The same for a CLIP text encoder.
inline ClipTextConfig clip_text_config_from_json(const JsonConfig& file) {
  const detail::CanonicalConfig all = detail::canonical_clip_text(file);
  ClipTextConfig c;
  c.vocabulary = file.get_or("vocab_size", 49408);
  c.width = file.get_or("hidden_size", 512);
  c.hidden = file.get_or("intermediate_size", 2048);
  c.layers = file.get_or("num_hidden_layers", 12);
  c.heads = file.get_or("num_attention_heads", 8);
  c.positions = file.get_or("max_position_embeddings", 77);
  c.quick_gelu = file.get_or<std::string>("hidden_act", "quick_gelu") == "quick_gelu";
  c.projection = all.contains("projection_dim") ? all.at("projection_dim").get<int>() : 0;
  detail::expect_same_config(file.name(), all, detail::canonical_clip_text(clip_text_json(c)),
                             "any text encoder of lpo");
  return c;
}

}  // namespace lpo::inline LPO_ABI
