// SPDX-License-Identifier: MIT
// LoraFile: the adapters in a safetensors or torch file, whatever naming they use (diffusers, peft, kohya).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/json.hpp>
#include <lpo/io/tensor_table.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

inline std::string with_underscores(std::string text) {
  std::replace(text.begin(), text.end(), '.', '_');
  return text;
}

inline void replace_first(std::string& text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
}

/// "down_blocks.1.attentions.0.x" -> "input_blocks.4.1.x": how ldm, and kohya for SDXL, number the same blocks.
inline std::string ldm_path(const std::string& path, int layers_per_block) {
  int block = 0, layer = 0;
  char* rest = nullptr;
  const auto number_after = [&](std::string_view word, int& value) {
    const std::size_t at = path.find(word);
    if (at == std::string::npos) return false;
    value = static_cast<int>(std::strtol(path.c_str() + at + word.size(), &rest, 10));
    return true;
  };
  const int stride = layers_per_block + 1;
  if (path.starts_with("mid_block.attentions.0.")) return "middle_block.1." + path.substr(23);
  const bool down = path.starts_with("down_blocks."), up = path.starts_with("up_blocks.");
  if ((!down && !up) || !number_after("_blocks.", block) || !number_after(".attentions.", layer)) return "";
  return message(down ? "input_blocks." : "output_blocks.", stride * block + layer + (down ? 1 : 0), ".1", rest);
}

}  // namespace detail

/// Which convention a LoRA file's keys follow.
enum class LoraFormat {
  diffusers,      ///< unet.<module>.lora_A.weight, alpha in the metadata
  diffusers_old,  ///< unet.<module>.lora.down.weight, no alpha
  kohya           ///< lora_unet_<module>.lora_down.weight, alpha as tensors
};

/// A LoRA file with its keys sorted by module. Text encoders' adapters are found under the components "text_encoder"
/// and "text_encoder_2". Keys without any prefix belong to "unet".
class LoraFile {
 public:
  /// One adapter: delta W = alpha / rank * up * down.
  struct Adapter {
    std::string component, path;  ///< path as the file spells it
    std::string down, up, alpha_key;
    index_t rank = 0;
    double alpha = 0;
    bool rank_stabilised = false;  ///< alpha / sqrt(rank) instead (rsLoRA)

    double scale() const {
      return alpha / (rank_stabilised ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
    }
  };

  /// FileError if the file cannot be read (see `open_tensor_file`), if half of a pair is missing, or if it holds no
  /// adapter at all.
  explicit LoraFile(const std::string& path) : LoraFile(open_tensor_file(path)) {}
  explicit LoraFile(TensorTable file) : file_(std::move(file)) {
    for (const std::string& key : file_.keys()) sort_in(key);
    for (auto& [id, adapter] : adapters_) finish(adapter);
    if (adapters_.empty())
      throw FileError(message("[LoraFile] ", file_.path(), ": holds no LoRA; its keys begin with ",
                              unknown_.empty() ? std::string("nothing") : "\"" + unknown_.front() + "\""));
  }

  const TensorTable& file() const { return file_; }

  /// The largest rank: what `enable_lora` needs.
  index_t rank() const {
    index_t largest = 0;
    for (const auto& [id, adapter] : adapters_) largest = std::max(largest, adapter.rank);
    return largest;
  }

  /// The adapter of a module, by its name in the model ("mid_block.attentions.0….attn1.to_q"), or null.
  const Adapter* find(const std::string& component, const std::string& path, int layers_per_block = 2) const {
    for (const std::string& spelling : {path, detail::ldm_path(path, layers_per_block)}) {
      if (spelling.empty()) continue;
      const auto found = adapters_.find({component, detail::with_underscores(spelling)});
      if (found != adapters_.end()) return &found->second;
    }
    return nullptr;
  }

  std::vector<const Adapter*> adapters() const {
    std::vector<const Adapter*> all;
    for (const auto& [id, adapter] : adapters_) all.push_back(&adapter);
    return all;
  }

  /// Keys that belong to no adapter.
  const std::vector<std::string>& unknown_keys() const { return unknown_; }

 private:
  enum class Role { down, up, alpha };

  /// Splits a key into module and role; nothing if it is not part of a LoRA.
  static std::optional<Role> split(std::string& key) {
    static constexpr std::pair<const char*, Role> suffixes[] = {{".lora_down.weight", Role::down},
                                                                {".lora_up.weight", Role::up},
                                                                {".lora.down.weight", Role::down},
                                                                {".lora.up.weight", Role::up},
                                                                {"_lora.down.weight", Role::down},
                                                                {"_lora.up.weight", Role::up},
                                                                {".lora_linear_layer.down.weight", Role::down},
                                                                {".lora_linear_layer.up.weight", Role::up},
                                                                {".alpha", Role::alpha}};
    for (const auto& [suffix, role] : suffixes) {
      if (!key.ends_with(suffix)) continue;
      const bool processor = suffix[0] == '_';  // attn1.processor.to_q_lora.down.weight, diffusers before 0.17
      key.resize(key.size() - std::string_view(suffix).size());
      if (processor) {
        detail::replace_first(key, ".processor.", ".");
        if (key.ends_with(".to_out")) key += ".0";
      }
      return role;
    }
    // peft: .lora_A.weight or .lora_A.<adapter name>.weight
    for (const auto& [infix, role] : {std::pair(".lora_A.", Role::down), std::pair(".lora_B.", Role::up)}) {
      const std::size_t at = key.rfind(infix);
      if (at == std::string::npos || !key.ends_with(".weight")) continue;
      key.resize(at);
      return role;
    }
    return std::nullopt;
  }

  static std::string take_component(std::string& path) {
    static constexpr std::pair<const char*, const char*> prefixes[] = {
        {"base_model.model.", ""},         {"unet.", "unet"},           {"text_encoder_2.", "text_encoder_2"},
        {"text_encoder.", "text_encoder"}, {"lora_unet_", "unet"},      {"lora_te1_", "text_encoder"},
        {"lora_te2_", "text_encoder_2"},   {"lora_te_", "text_encoder"}};
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
    return component.empty() ? "unet" : component;
  }

  void sort_in(const std::string& key) {
    std::string path = key;
    const auto role = split(path);
    if (!role) {
      unknown_.push_back(key);
      return;
    }
    const std::string component = take_component(path);
    Adapter& adapter = adapters_[{component, detail::with_underscores(path)}];
    adapter.component = component;
    adapter.path = path;
    std::string& place = *role == Role::down ? adapter.down : *role == Role::up ? adapter.up : adapter.alpha_key;
    if (!place.empty())
      throw FileError(message("[LoraFile] ", file_.path(), ": \"", place, "\" and \"", key, "\" name the same weight"));
    place = key;
  }

  void finish(Adapter& adapter) {
    if (adapter.down.empty() || adapter.up.empty())
      throw FileError(message("[LoraFile] ", file_.path(), ": \"", adapter.down + adapter.up + adapter.alpha_key,
                              "\" has no partner: an adapter needs both matrices"));
    const auto& down = file_.info(adapter.down).shape;
    const auto& up = file_.info(adapter.up).shape;
    if (down.size() < 2 || up.size() < 2 || down[0] != up[1] || down[0] < 1)
      throw FileError(message("[LoraFile] ", file_.path(), ": \"", adapter.down, "\" is ", shape_text(down), ", \"",
                              adapter.up, "\" is ", shape_text(up), "; expected [rank, in] and [out, rank]"));
    adapter.rank = down[0];
    adapter.alpha = static_cast<double>(adapter.rank);
    if (!adapter.alpha_key.empty())
      file_.read(adapter.alpha_key, &adapter.alpha, index_t{1});
    else
      alpha_from_metadata(adapter);
  }

  /// diffusers writes peft's LoraConfig as JSON text, its keys behind the component's name.
  void alpha_from_metadata(Adapter& adapter) {
    const auto found = file_.metadata().find("lora_adapter_metadata");
    if (found == file_.metadata().end()) return;
    const auto json = parse_json<SortedJson>(found->second, "LoraFile", file_.path());
    const auto setting = [&](const char* name) -> const SortedJson* {
      if (!json.is_object()) return nullptr;
      const auto at = json.find(adapter.component + "." + name);
      return at == json.end() ? nullptr : &*at;
    };
    if (const auto* alpha = setting("lora_alpha"); alpha != nullptr && alpha->is_number())
      adapter.alpha = alpha->get<double>();
    if (const auto* pattern = setting("alpha_pattern"); pattern != nullptr && pattern->is_object())
      for (const auto& [name, value] : pattern->items())
        if (value.is_number() && (adapter.path == name || adapter.path.ends_with("." + name)))
          adapter.alpha = value.template get<double>();
    if (const auto* stabilised = setting("use_rslora"); stabilised != nullptr && stabilised->is_boolean())
      adapter.rank_stabilised = stabilised->get<bool>();
  }

  TensorTable file_;
  std::map<std::pair<std::string, std::string>, Adapter> adapters_;
  std::vector<std::string> unknown_;
};

}  // namespace lpo::inline LPO_ABI
