// SPDX-License-Identifier: MIT
// Names of weights in single-file checkpoints: for an architecture, every weight of diffusers and where ldm keeps it.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/model/clip_text_config.hpp>
#include <lpo/model/unet_config.hpp>
#include <lpo/model/vae_config.hpp>

namespace lpo::inline LPO_ABI {

/// How a weight lies in the tensor that holds it.
enum class WeightPacking {
  whole,       ///< as it is
  pointwise,   ///< a matrix [o, i] stored as the 1x1 convolution [o, i, 1, 1]
  transposed,  ///< a matrix [o, i] stored as [i, o]
  query,       ///< rows 0 to n of a matrix [3 n, i] (or a vector [3 n]) that joins three projections
  key,         ///< rows n to 2 n
  value        ///< rows 2 n to 3 n
};

/// One weight of a component under both of its names, without the component's prefix.
struct StoredWeight {
  std::string name;    ///< in diffusers or transformers, as in lpo's models
  std::string stored;  ///< in a single file of the original (ldm) code
  WeightPacking packing = WeightPacking::whole;
};

namespace detail {

/// Collects pairs of names.
class StoredWeights {
 public:
  void matrix(const std::string& name, const std::string& stored, WeightPacking packing = WeightPacking::whole) {
    weights_.push_back({name + ".weight", stored + ".weight", packing});
  }
  /// A convolution, norm or matrix with its bias.
  void layer(const std::string& name, const std::string& stored, WeightPacking packing = WeightPacking::whole) {
    matrix(name, stored, packing);
    weights_.push_back({name + ".bias", stored + ".bias", WeightPacking::whole});
  }
  void tensor(const std::string& name, const std::string& stored, WeightPacking packing = WeightPacking::whole) {
    weights_.push_back({name, stored, packing});
  }
  std::vector<StoredWeight> take() { return std::move(weights_); }

 private:
  std::vector<StoredWeight> weights_;
};

inline std::string numbered(const std::string& name, int index) { return name + "." + std::to_string(index); }

/// A residual block of the UNet.
inline void add_unet_resnet(StoredWeights& w, const std::string& name, const std::string& stored, bool shortcut) {
  w.layer(name + ".norm1", stored + ".in_layers.0");
  w.layer(name + ".conv1", stored + ".in_layers.2");
  w.layer(name + ".time_emb_proj", stored + ".emb_layers.1");
  w.layer(name + ".norm2", stored + ".out_layers.0");
  w.layer(name + ".conv2", stored + ".out_layers.3");
  if (shortcut) w.layer(name + ".conv_shortcut", stored + ".skip_connection");
}

/// A transformer of the UNet: inside it diffusers kept the original names.
inline void add_unet_transformer(StoredWeights& w, const std::string& name, const std::string& stored, int depth) {
  const auto same = [&](const std::string& part, bool bias) {
    bias ? w.layer(name + part, stored + part) : w.matrix(name + part, stored + part);
  };
  for (const char* part : {".norm", ".proj_in", ".proj_out"}) same(part, true);
  for (int k = 0; k < depth; ++k) {
    const std::string block = numbered(".transformer_blocks", k);
    for (const char* attention : {".attn1", ".attn2"}) {
      for (const char* projection : {".to_q", ".to_k", ".to_v"}) same(block + attention + projection, false);
      same(block + attention + ".to_out.0", true);
    }
    for (const char* part : {".norm1", ".norm2", ".norm3", ".ff.net.0.proj", ".ff.net.2"}) same(block + part, true);
  }
}

/// A residual block of the autoencoder.
inline void add_vae_resnet(StoredWeights& w, const std::string& name, const std::string& stored, bool shortcut) {
  for (const char* part : {".norm1", ".conv1", ".norm2", ".conv2"}) w.layer(name + part, stored + part);
  if (shortcut) w.layer(name + ".conv_shortcut", stored + ".nin_shortcut");
}

/// The middle of the autoencoder's encoder or decoder.
inline void add_vae_middle(StoredWeights& w, const std::string& half, bool attention) {
  add_vae_resnet(w, half + ".mid_block.resnets.0", half + ".mid.block_1", false);
  add_vae_resnet(w, half + ".mid_block.resnets.1", half + ".mid.block_2", false);
  if (!attention) return;
  const std::string name = half + ".mid_block.attentions.0", stored = half + ".mid.attn_1";
  w.layer(name + ".group_norm", stored + ".norm");
  w.layer(name + ".to_q", stored + ".q", WeightPacking::pointwise);
  w.layer(name + ".to_k", stored + ".k", WeightPacking::pointwise);
  w.layer(name + ".to_v", stored + ".v", WeightPacking::pointwise);
  w.layer(name + ".to_out.0", stored + ".proj_out", WeightPacking::pointwise);
}

}  // namespace detail

/// The UNet, under `model.diffusion_model.`: ldm numbers the blocks of all levels in one row, the downsamplers among
/// them, and puts an upsampler behind the last layer (and its transformer) of its level.
inline std::vector<StoredWeight> ldm_unet_weights(const UNetConfig& c) {
  using detail::numbered;
  detail::StoredWeights w;
  w.layer("conv_in", "input_blocks.0.0");
  w.layer("time_embedding.linear_1", "time_embed.0");
  w.layer("time_embedding.linear_2", "time_embed.2");
  if (c.addition_width > 0) {
    w.layer("add_embedding.linear_1", "label_emb.0.0");
    w.layer("add_embedding.linear_2", "label_emb.0.2");
  }
  int row = 1;
  for (int level = 0; level < c.levels; ++level) {
    const std::string block = numbered("down_blocks", level);
    const int depth = c.transformer_depth[static_cast<std::size_t>(level)];
    for (int j = 0; j < c.layers_per_block; ++j, ++row) {
      const std::string stored = numbered("input_blocks", row);
      const int in = j > 0 ? c.level_channels(level) : c.level_channels(level > 0 ? level - 1 : 0);
      detail::add_unet_resnet(w, numbered(block + ".resnets", j), stored + ".0", in != c.level_channels(level));
      if (depth > 0) detail::add_unet_transformer(w, numbered(block + ".attentions", j), stored + ".1", depth);
    }
    if (level + 1 < c.levels) w.layer(block + ".downsamplers.0.conv", numbered("input_blocks", row++) + ".0.op");
  }
  detail::add_unet_resnet(w, "mid_block.resnets.0", "middle_block.0", false);
  if (c.mid_depth > 0) detail::add_unet_transformer(w, "mid_block.attentions.0", "middle_block.1", c.mid_depth);
  detail::add_unet_resnet(w, "mid_block.resnets.1", c.mid_depth > 0 ? "middle_block.2" : "middle_block.1", false);
  row = 0;
  for (int i = 0; i < c.levels; ++i) {
    const int level = c.levels - 1 - i;
    const std::string block = numbered("up_blocks", i);
    const int depth = c.transformer_depth[static_cast<std::size_t>(level)];
    for (int j = 0; j <= c.layers_per_block; ++j, ++row) {
      const std::string stored = numbered("output_blocks", row);
      const int above = j > 0 ? c.level_channels(level) : c.level_channels(i > 0 ? level + 1 : level);
      const int skip = j < c.layers_per_block ? c.level_channels(level) : c.level_channels(level > 0 ? level - 1 : 0);
      detail::add_unet_resnet(w, numbered(block + ".resnets", j), stored + ".0",
                              above + skip != c.level_channels(level));
      if (depth > 0) detail::add_unet_transformer(w, numbered(block + ".attentions", j), stored + ".1", depth);
    }
    if (level > 0)
      w.layer(block + ".upsamplers.0.conv", numbered("output_blocks", row - 1) + (depth > 0 ? ".2.conv" : ".1.conv"));
  }
  w.layer("conv_norm_out", "out.0");
  w.layer("conv_out", "out.2");
  return w.take();
}

/// The autoencoder, under `first_stage_model.`: ldm counts the decoder's levels from the image, diffusers from the
/// latent.
inline std::vector<StoredWeight> ldm_vae_weights(const VaeConfig& c) {
  using detail::numbered;
  detail::StoredWeights w;
  const auto ends = [&](const std::string& half) {
    w.layer(half + ".conv_in", half + ".conv_in");
    w.layer(half + ".conv_norm_out", half + ".norm_out");
    w.layer(half + ".conv_out", half + ".conv_out");
  };
  ends("encoder");
  for (int level = 0; level < c.levels; ++level) {
    const std::string name = numbered("encoder.down_blocks", level), stored = numbered("encoder.down", level);
    for (int j = 0; j < c.layers_per_block; ++j) {
      const int in = j > 0 ? c.level_channels(level) : c.level_channels(level > 0 ? level - 1 : 0);
      detail::add_vae_resnet(w, numbered(name + ".resnets", j), numbered(stored + ".block", j),
                             in != c.level_channels(level));
    }
    if (level + 1 < c.levels) w.layer(name + ".downsamplers.0.conv", stored + ".downsample.conv");
  }
  detail::add_vae_middle(w, "encoder", c.mid_attention);
  ends("decoder");
  detail::add_vae_middle(w, "decoder", c.mid_attention);
  for (int i = 0; i < c.levels; ++i) {
    const int level = c.levels - 1 - i;
    const std::string name = numbered("decoder.up_blocks", i), stored = numbered("decoder.up", level);
    for (int j = 0; j <= c.layers_per_block; ++j) {
      const int in = j > 0 ? c.level_channels(level) : c.level_channels(i > 0 ? level + 1 : level);
      detail::add_vae_resnet(w, numbered(name + ".resnets", j), numbered(stored + ".block", j),
                             in != c.level_channels(level));
    }
    if (level > 0) w.layer(name + ".upsamplers.0.conv", stored + ".upsample.conv");
  }
  if (c.quant_conv) w.layer("quant_conv", "quant_conv");
  if (c.post_quant_conv) w.layer("post_quant_conv", "post_quant_conv");
  return w.take();
}

/// A text encoder that single files keep under transformers' own names (OpenAI's CLIP: SD1.x, the first of SDXL).
inline std::vector<StoredWeight> ldm_clip_weights(const ClipTextConfig& c) {
  detail::StoredWeights w;
  const auto same = [&](const std::string& name) { w.layer(name, name); };
  for (const char* table : {"text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding"})
    w.matrix(table, table);
  for (int i = 0; i < c.layers; ++i) {
    const std::string layer = detail::numbered("text_model.encoder.layers", i);
    for (const char* part : {".layer_norm1", ".layer_norm2", ".mlp.fc1", ".mlp.fc2", ".self_attn.q_proj",
                             ".self_attn.k_proj", ".self_attn.v_proj", ".self_attn.out_proj"})
      same(layer + part);
  }
  same("text_model.final_layer_norm");
  if (c.projection > 0) w.matrix("text_projection", "text_projection");
  return w.take();
}

/// A text encoder in the layout of open_clip (SD2.x, the second of SDXL): query, key and value in one matrix, the
/// projection transposed.
inline std::vector<StoredWeight> open_clip_weights(const ClipTextConfig& c) {
  using enum WeightPacking;
  detail::StoredWeights w;
  w.tensor("text_model.embeddings.token_embedding.weight", "token_embedding.weight");
  w.tensor("text_model.embeddings.position_embedding.weight", "positional_embedding");
  for (int i = 0; i < c.layers; ++i) {
    const std::string name = detail::numbered("text_model.encoder.layers", i);
    const std::string stored = detail::numbered("transformer.resblocks", i);
    w.layer(name + ".layer_norm1", stored + ".ln_1");
    w.layer(name + ".layer_norm2", stored + ".ln_2");
    w.layer(name + ".mlp.fc1", stored + ".mlp.c_fc");
    w.layer(name + ".mlp.fc2", stored + ".mlp.c_proj");
    for (const char* kind : {"weight", "bias"}) {
      const std::string joined = stored + ".attn.in_proj_" + kind;
      w.tensor(name + ".self_attn.q_proj." + kind, joined, query);
      w.tensor(name + ".self_attn.k_proj." + kind, joined, key);
      w.tensor(name + ".self_attn.v_proj." + kind, joined, value);
    }
    w.layer(name + ".self_attn.out_proj", stored + ".attn.out_proj");
  }
  w.layer("text_model.final_layer_norm", "ln_final");
  if (c.projection > 0) w.tensor("text_projection.weight", "text_projection", transposed);
  return w.take();
}

}  // namespace lpo::inline LPO_ABI
