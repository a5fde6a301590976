// SPDX-License-Identifier: MIT
// The architecture that the tensors of a single-file checkpoint have, read from their names and shapes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <lpo/io/ldm_names.hpp>
#include <lpo/io/tensor_table.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// Questions about the tensors below a prefix.
class LdmShapes {
 public:
  LdmShapes(const TensorTable& source, const std::string& prefix) : source_(source), prefix_(prefix) {}

  bool has(const std::string& name) const { return source_.contains(prefix_ + name); }
  int rank(const std::string& name) const { return static_cast<int>(source_.info(prefix_ + name).shape.size()); }

  /// FileError if the tensor is missing, has no such axis, or is wider than any network.
  int extent(const std::string& name, int axis) const {
    const auto& shape = source_.info(prefix_ + name).shape;
    const auto at = static_cast<std::size_t>(axis);
    if (at >= shape.size() || shape[at] < 1 || shape[at] > (1 << 24))
      throw FileError(message("[checkpoint] ", source_.path(), ": tensor \"", prefix_, name, "\" has shape ",
                              shape_text(shape), ", expected a weight"));
    return static_cast<int>(shape[at]);
  }

  /// How many of `before`0`after`, `before`1`after` … there are.
  int count(const std::string& before, const std::string& after) const {
    int k = 0;
    while (has(before + std::to_string(k) + after)) ++k;
    return k;
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw FileError(message("[checkpoint] ", source_.path(), ": ", parts...));
  }

 private:
  const TensorTable& source_;
  std::string prefix_;
};

/// Stable Diffusion has 32 groups; 0 stands for "shapes do not tell".
template <class Channels>
int usual_groups(const Channels& channels) {
  for (const int width : channels)
    if (width % 32 != 0) return 0;
  return 32;
}

}  // namespace detail

/// The UNet below `prefix`. Two things are no matter of shape and follow Stable Diffusion: 32 groups, and 8 heads (v1)
/// or heads of 64 channels (linear projections: v2, XL). Where that cannot be, `groups` and `heads` are 0.
/// `addition_time_width` is XL's 256. FileError if this is no UNet of lpo's kind.
inline UNetConfig unet_config_from_ldm(const TensorTable& source, const std::string& prefix) {
  const detail::LdmShapes s(source, prefix);
  UNetConfig c;
  c.channels = c.transformer_depth = c.heads = {};
  c.levels = 0;
  c.in_channels = s.extent("input_blocks.0.0.weight", 1);
  c.out_channels = s.extent("out.2.weight", 0);
  std::string transformer = "middle_block.1";
  c.mid_depth = s.count(transformer + ".transformer_blocks.", ".norm1.weight");
  int row = 1;
  for (bool more = true; more; ++row) {
    if (c.levels == UNetConfig::max_levels)
      s.fail("the UNet has more than ", UNetConfig::max_levels, " levels, which lpo does not know");
    int layers = 0, width = 0, depth = 0;
    for (;; ++layers, ++row) {
      const std::string block = detail::numbered("input_blocks", row);
      if (!s.has(block + ".0.in_layers.2.weight")) break;
      const int this_width = s.extent(block + ".0.in_layers.2.weight", 0);
      const int this_depth = s.count(block + ".1.transformer_blocks.", ".norm1.weight");
      if (layers > 0 && (this_width != width || this_depth != depth))
        s.fail("the layers of level ", c.levels, " of the UNet have ", width, " and ", this_width, " channels, ", depth,
               " and ", this_depth, " transformer blocks; lpo expects the same in a level");
      width = this_width;
      depth = this_depth;
      if (depth > 0) transformer = block + ".1";
    }
    if (layers == 0 || (c.levels > 0 && layers != c.layers_per_block))
      s.fail("level ", c.levels, " of the UNet has ", layers, " layers, expected ",
             c.levels > 0 ? std::to_string(c.layers_per_block) : std::string("at least 1"));
    c.layers_per_block = layers;
    const auto level = static_cast<std::size_t>(c.levels++);
    c.channels[level] = width;
    c.transformer_depth[level] = depth;
    more = s.has(detail::numbered("input_blocks", row) + ".0.op.weight");
  }
  if (s.has(transformer + ".proj_in.weight")) {
    c.linear_projection = s.rank(transformer + ".proj_in.weight") == 2;
    c.context_width = s.extent(transformer + ".transformer_blocks.0.attn2.to_k.weight", 1);
  }
  for (std::size_t level = 0; level < static_cast<std::size_t>(c.levels); ++level) {
    const int width = c.channels[level], heads = c.linear_projection ? width / 64 : 8;
    c.heads[level] = heads > 0 && width % heads == 0 && (!c.linear_projection || width % 64 == 0) ? heads : 0;
  }
  c.groups = detail::usual_groups(c.channels);
  if (s.has("label_emb.0.0.weight")) {
    c.addition_width = s.extent("label_emb.0.0.weight", 1);
    c.addition_time_width = presets::sdxl.addition_time_width;
  }
  return c;
}

/// The autoencoder below `prefix`; `groups` as above.
inline VaeConfig vae_config_from_ldm(const TensorTable& source, const std::string& prefix) {
  const detail::LdmShapes s(source, prefix);
  VaeConfig c;
  c.channels = {};
  c.in_channels = s.extent("encoder.conv_in.weight", 1);
  c.out_channels = s.extent("decoder.conv_out.weight", 0);
  c.latent_channels = s.extent("decoder.conv_in.weight", 1);
  c.levels = s.count("encoder.down.", ".block.0.conv1.weight");
  c.layers_per_block = s.count("encoder.down.0.block.", ".conv1.weight");
  if (c.levels < 1 || c.levels > VaeConfig::max_levels)
    s.fail("the autoencoder has ", c.levels, " levels, expected 1 to ", VaeConfig::max_levels);
  for (int level = 0; level < c.levels; ++level)
    c.channels[static_cast<std::size_t>(level)] =
        s.extent(detail::numbered("encoder.down", level) + ".block.0.conv1.weight", 0);
  c.groups = detail::usual_groups(c.channels);
  c.mid_attention = s.has("encoder.mid.attn_1.norm.weight");
  c.quant_conv = s.has("quant_conv.weight");
  c.post_quant_conv = s.has("post_quant_conv.weight");
  return c;
}

/// The text encoder below `prefix`, under transformers' names or (`open_clip`) in open_clip's layout. Heads have 64
/// channels; 0 where that cannot be. `projected` asks for the projection. Without it, the 24th layer of open_clip's
/// ViT-H does not count: SD2 takes the states before it, and diffusers leaves it out.
inline ClipTextConfig clip_text_config_from_ldm(const TensorTable& source, const std::string& prefix, bool open_clip,
                                                bool projected) {
  const detail::LdmShapes s(source, prefix);
  ClipTextConfig c;
  const std::string table = open_clip ? "token_embedding.weight" : "text_model.embeddings.token_embedding.weight";
  c.vocabulary = s.extent(table, 0);
  c.width = s.extent(table, 1);
  c.positions = s.extent(open_clip ? "positional_embedding" : "text_model.embeddings.position_embedding.weight", 0);
  const std::string layers = open_clip ? "transformer.resblocks." : "text_model.encoder.layers.";
  c.layers = s.count(layers, open_clip ? ".ln_1.weight" : ".layer_norm1.weight");
  c.hidden = s.extent(layers + (open_clip ? "0.mlp.c_fc.weight" : "0.mlp.fc1.weight"), 0);
  if (open_clip && !projected && c.layers == presets::clip_h.layers + 1) --c.layers;
  c.heads = c.width % 64 == 0 ? c.width / 64 : 0;
  c.quick_gelu = !open_clip;
  c.projection = 0;
  if (projected) c.projection = open_clip ? s.extent("text_projection", 1) : s.extent("text_projection.weight", 0);
  return c;
}

}  // namespace lpo::inline LPO_ABI
