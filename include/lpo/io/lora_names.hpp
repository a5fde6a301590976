// SPDX-License-Identifier: MIT
// How LoRA files spell their keys (diffusers, peft, kohya, ldm's block numbers), brought to the names that diffusers'
// models use.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

/// Which convention a LoRA file's keys follow.
enum class LoraFormat {
  diffusers,      ///< unet.<module>.lora_A.weight, alpha in the metadata
  diffusers_old,  ///< unet.<module>.lora.down.weight, no alpha
  kohya           ///< lora_unet_<module>.lora_down.weight, alpha as tensors
};

inline const char* lora_format_name(LoraFormat format) {
  return format == LoraFormat::diffusers ? "diffusers" : format == LoraFormat::kohya ? "kohya" : "diffusers_old";
}

namespace detail {

enum class LoraRole { down, up, alpha };

/// A key taken apart.
struct LoraKey {
  std::string component;  ///< "unet", "text_encoder" or "text_encoder_2"
  std::string path;       ///< the module in diffusers' names, "mid_block.attentions.0.proj_in"
  LoraRole role = LoraRole::down;
  LoraFormat format = LoraFormat::diffusers;
};

inline std::string with_underscores(std::string text) {
  std::replace(text.begin(), text.end(), '.', '_');
  return text;
}

inline void replace_first(std::string& text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
}

/// "down_blocks_0_resnets_1_conv_shortcut" -> "down_blocks.0.resnets.1.conv_shortcut". kohya's names have lost the
/// difference between dot and underscore; the words with underscores in UNets and CLIP's text encoders restore it.
inline std::string with_dots(const std::string& name) {
  static constexpr std::string_view words =
      " down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out proj_in proj_out time_emb_proj "
      "conv_shortcut conv_in conv_out conv_norm_out time_embedding add_embedding class_embedding linear_1 linear_2 "
      "text_model self_attn q_proj k_proj v_proj out_proj text_projection token_embedding position_embedding "
      "layer_norm1 layer_norm2 final_layer_norm input_blocks middle_block output_blocks in_layers out_layers "
      "emb_layers skip_connection time_embed label_emb ";
  std::string dotted;
  for (std::size_t at = 0; at < name.size();) {
    std::size_t length = std::min(name.find('_', at), name.size()) - at;
    for (std::size_t end = at + length; end < name.size();) {
      end = std::min(name.find('_', end + 1), name.size());
      if (end - at > 20) break;  // longer than every word
      if (words.find(" " + name.substr(at, end - at) + " ") != std::string_view::npos) length = end - at;
    }
    dotted += (at == 0 ? "" : ".") + name.substr(at, length);
    at += length + 1;
  }
  return dotted;
}

/// True if `path` is `module` or lies in it; then `rest` is what follows, without the dot.
inline bool lies_in(std::string_view path, std::string_view module, std::string_view& rest) {
  if (!path.starts_with(module) || (path.size() > module.size() && path[module.size()] != '.')) return false;
  rest = path.substr(std::min(path.size(), module.size() + 1));
  return true;
}

/// Takes "12." off the front of `rest`.
inline std::optional<int> take_number(std::string_view& rest) {
  const std::size_t end = std::min(rest.find('.'), rest.size());
  if (end == 0 || end > 4 || rest.substr(0, end).find_first_not_of("0123456789") != std::string_view::npos)
    return std::nullopt;
  int value = 0;
  for (const char digit : rest.substr(0, end)) value = 10 * value + (digit - '0');
  rest = rest.substr(std::min(rest.size(), end + 1));
  return value;
}

/// "in_layers.2" -> "conv1": the parts of a residual block in ldm.
inline std::string resnet_part(std::string_view part) {
  static constexpr std::pair<std::string_view, const char*> parts[] = {
      {"in_layers.0", "norm1"},  {"in_layers.2", "conv1"},  {"emb_layers.1", "time_emb_proj"},
      {"out_layers.0", "norm2"}, {"out_layers.3", "conv2"}, {"skip_connection", "conv_shortcut"}};
  for (const auto& [ldm, diffusers] : parts)
    if (part == ldm) return diffusers;
  return std::string(part);
}

/// "input_blocks.4.1.proj_in" -> "down_blocks.1.attentions.0.proj_in": ldm, and kohya for SDXL, number all blocks of a
/// half in one row. Other paths come back as they are.
inline std::string without_ldm_numbers(const std::string& path, int layers_per_block) {
  static constexpr std::pair<std::string_view, const char*> modules[] = {{"input_blocks.0.0", "conv_in"},
                                                                         {"out.0", "conv_norm_out"},
                                                                         {"out.2", "conv_out"},
                                                                         {"time_embed.0", "time_embedding.linear_1"},
                                                                         {"time_embed.2", "time_embedding.linear_2"},
                                                                         {"label_emb.0.0", "add_embedding.linear_1"},
                                                                         {"label_emb.0.2", "add_embedding.linear_2"}};
  std::string_view rest;
  for (const auto& [ldm, diffusers] : modules)
    if (lies_in(path, ldm, rest)) return rest.empty() ? diffusers : message(diffusers, ".", rest);
  if (lies_in(path, "middle_block.0", rest)) return "mid_block.resnets.0." + resnet_part(rest);
  if (lies_in(path, "middle_block.1", rest)) return message("mid_block.attentions.0.", rest);
  if (lies_in(path, "middle_block.2", rest)) return "mid_block.resnets.1." + resnet_part(rest);
  const bool down = lies_in(path, "input_blocks", rest);
  if (!down && !lies_in(path, "output_blocks", rest)) return path;
  const auto number = take_number(rest), member = take_number(rest);
  if (!number || !member || *member > 2 || (down && *number == 0)) return path;
  const int stride = layers_per_block + 1, index = down ? *number - 1 : *number;
  const int block = index / stride, layer = index % stride;
  const std::string half = message(down ? "down_blocks." : "up_blocks.", block);
  if (down && layer == layers_per_block)
    return message(half, ".downsamplers.0.", rest == "op" ? std::string_view("conv") : rest);
  if (!down && (*member == 2 || rest == "conv")) return message(half, ".upsamplers.0.", rest);
  if (*member == 0) return message(half, ".resnets.", layer, ".", resnet_part(rest));
  return message(half, ".attentions.", layer, ".", rest);
}

/// Splits the role off a key; nothing if it is not part of a LoRA. What remains is component and module.
inline std::optional<std::pair<LoraRole, LoraFormat>> take_lora_role(std::string& key) {
  struct Suffix {
    std::string_view text;
    LoraRole role;
    LoraFormat format;
  };
  static constexpr Suffix suffixes[] = {{".lora_down.weight", LoraRole::down, LoraFormat::kohya},
                                        {".lora_up.weight", LoraRole::up, LoraFormat::kohya},
                                        {".alpha", LoraRole::alpha, LoraFormat::kohya},
                                        {".lora.down.weight", LoraRole::down, LoraFormat::diffusers_old},
                                        {".lora.up.weight", LoraRole::up, LoraFormat::diffusers_old},
                                        {"_lora.down.weight", LoraRole::down, LoraFormat::diffusers_old},
                                        {"_lora.up.weight", LoraRole::up, LoraFormat::diffusers_old},
                                        {".lora_linear_layer.down.weight", LoraRole::down, LoraFormat::diffusers_old},
                                        {".lora_linear_layer.up.weight", LoraRole::up, LoraFormat::diffusers_old}};
  for (const auto& [text, role, format] : suffixes) {
    if (!key.ends_with(text)) continue;
    const bool processor = text[0] == '_';  // attn1.processor.to_q_lora.down.weight, diffusers before 0.17
    key.resize(key.size() - text.size());
    if (processor) {
      replace_first(key, ".processor.", ".");
      const bool clip = key.find(".self_attn.to_") != std::string::npos;
      if (clip)
        replace_first(key, ".self_attn.to_", ".self_attn."), key += "_proj";
      else if (key.ends_with(".to_out"))
        key += ".0";
    }
    return std::pair(role, format);
  }
  // peft: .lora_A.weight or .lora_A.<adapter name>.weight
  for (const auto& [infix, role] : {std::pair(".lora_A.", LoraRole::down), std::pair(".lora_B.", LoraRole::up)}) {
    const std::size_t at = key.rfind(infix);
    if (at == std::string::npos || !key.ends_with(".weight")) continue;
    key.resize(at);
    return std::pair(role, LoraFormat::diffusers);
  }
  return std::nullopt;
}

/// Takes the prefixes off a path and tells which part of a pipeline they mean; keys without any belong to "unet".
inline std::string take_lora_component(std::string& path) {
  static constexpr std::pair<const char*, const char*> prefixes[] = {
      {"base_model.model.", ""},         {"unet.", "unet"},
      {"diffusion_model.", "unet"},      {"text_encoder_2.", "text_encoder_2"},
      {"text_encoder.", "text_encoder"}, {"lora_unet_", "unet"},
      {"lora_te1_", "text_encoder"},     {"lora_te2_", "text_encoder_2"},
      {"lora_te_", "text_encoder"}};
  std::string component;
  for (bool again = true; again;) {
    again = false;
    for (const auto& [prefix, name] : prefixes) {
      if (!path.starts_with(prefix) || (!component.empty() && name[0] != '\0')) continue;
      path.erase(0, std::string_view(prefix).size());
      if (name[0] != '\0') component = name;
      again = true;
      break;
    }
  }
  if (!component.empty()) return component;
  return path.starts_with("text_model.") ? "text_encoder" : "unet";
}

/// A key of a LoRA file taken apart, or nothing if it is not one of a plain LoRA.
inline std::optional<LoraKey> parse_lora_key(const std::string& key, int layers_per_block) {
  LoraKey parsed;
  parsed.path = key;
  const auto role = take_lora_role(parsed.path);
  if (!role) return std::nullopt;
  parsed.role = role->first;
  parsed.format = role->second;
  parsed.component = take_lora_component(parsed.path);
  if (parsed.path.find('.') == std::string::npos) parsed.path = with_dots(parsed.path);
  if (parsed.component == "unet") parsed.path = without_ldm_numbers(parsed.path, layers_per_block);
  return parsed;
}

/// The kind of adapter that a key belongs to if it changes weights in a way that is no plain LoRA, or null.
inline const char* other_adapter_kind(std::string_view key) {
  static constexpr std::pair<std::string_view, const char*> kinds[] = {
      {".hada_", "LoHa"},
      {".lokr_", "LoKr"},
      {".oft_", "OFT"},
      {".lora_mid.", "a convolution LoRA with a mid tensor"},
      {".dora_scale", "DoRA"},
      {".lora_magnitude_vector", "DoRA"},
      {".lora_embedding_", "a LoRA of an embedding"},
      {".on_input", "IA3"},
      {".w_norm", "a trained norm"},
      {".b_norm", "a trained norm"},
      {".diff_b", "a full difference"}};
  for (const auto& [part, kind] : kinds)
    if (key.find(part) != std::string_view::npos) return kind;
  if (key.ends_with(".diff")) return "a full difference";
  if (key.ends_with(".bias") && (key.find(".lora_B.") != std::string_view::npos || key.ends_with(".lora_up.bias")))
    return "a LoRA with a bias";
  return nullptr;
}

}  // namespace detail

}  // namespace lpo::inline LPO_ABI
