// SPDX-License-Identifier: MIT
// The checkpoint that a LoRA belongs to, as files: which parts it has, and how a LoRA's adapters fit their weights.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/clip_text_names.hpp>
#include <lpo/io/lora_file.hpp>

namespace lpo::inline LPO_ABI {

/// The weights of one part of a pipeline.
struct BaseComponent {
  std::string name;       ///< "unet", "text_encoder" or "text_encoder_2"
  std::string file_name;  ///< what a file with all of its weights is called: "unet/diffusion_pytorch_model.safetensors"
  Checkpoint weights;
};

namespace detail {

inline BaseComponent open_component(const std::string& folder, const std::string& name, const std::string& subfolder) {
  const std::string basename = name.starts_with("text_encoder") ? "model" : "diffusion_pytorch_model";
  // Folders that were downloaded as "fp16" have no other weights.
  const bool half = file_exists(folder + "/" + basename + ".fp16.safetensors") &&
                    !file_exists(folder + "/" + basename + ".safetensors");
  return {name, subfolder + basename + (half ? ".fp16" : "") + ".safetensors",
          open_checkpoint(folder, basename, half ? "fp16" : "")};
}

/// "unet" or "text_encoder", by the names of the weights.
inline std::string component_of_keys(const Checkpoint& weights) {
  for (const std::string& key : weights.keys()) {
    if (key.starts_with(clip_text_module) || is_bare_clip_text_name(key)) return "text_encoder";
    if (key.starts_with("model.diffusion_model.") || key.starts_with("first_stage_model."))
      throw FileError(message("[lora] ", weights.path(), ": holds a whole pipeline in ldm's layout (\"", key,
                              "\"); save it as a diffusers folder first"));
  }
  return "unet";
}

}  // namespace detail

/// Opens what a LoRA may adapt: one safetensors file, one component's folder, or the folder of a pipeline with unet/
/// and text encoders. `component` says what a single file or component is; "" tells it from the folder's name or the
/// weights' names. FileError if there are no weights.
inline std::vector<BaseComponent> open_base(const std::string& path, const std::string& component = "") {
  std::vector<BaseComponent> parts;
  const auto named = [&](const Checkpoint& weights) {
    return component.empty() ? detail::component_of_keys(weights) : component;
  };
  if (file_exists(path)) {
    Checkpoint weights(path);
    const std::string name = named(weights);
    parts.push_back({name, path.substr(path.find_last_of('/') + 1), std::move(weights)});
    return parts;
  }
  for (const char* name : {"unet", "text_encoder", "text_encoder_2"})
    if (directory_exists(path + "/" + name))
      parts.push_back(detail::open_component(path + "/" + name, name, std::string(name) + "/"));
  if (!parts.empty()) return parts;
  if (!directory_exists(path)) throw FileError(message("[lora] ", path, ": no such file or folder"));
  // A component's own folder.
  std::string folder = path;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  std::string name = folder.substr(folder.find_last_of('/') + 1);
  if (!component.empty())
    name = component;
  else if (!name.starts_with("text_encoder"))
    name = file_exists(folder + "/model.safetensors") ? "text_encoder" : "unet";
  parts.push_back(detail::open_component(folder, name, ""));
  return parts;
}

/// How many residual blocks a level of the base's UNet has, for LoRA files with ldm's block numbers; 2 if there is
/// none.
inline int layers_per_block_of(const std::vector<BaseComponent>& base) {
  for (const BaseComponent& part : base) {
    int layers = 0;
    while (part.weights.contains(message("down_blocks.0.resnets.", layers, ".conv1.weight"))) ++layers;
    if (layers > 0) return layers;
  }
  return 2;
}

/// An adapter and the weight that it adapts.
struct LoraTarget {
  const LoraFile::Adapter* adapter = nullptr;
  const BaseComponent* part = nullptr;
  std::string key;  ///< of the weight
};

/// How a LoRA fits a base. Points into both.
struct LoraFit {
  std::vector<LoraTarget> targets;      ///< adapters that have their weight, in the order of the file
  std::vector<std::string> unmatched;   ///< keys of the LoRA that have none, sorted
  std::vector<std::string> mismatched;  ///< a sentence for each adapter whose shapes differ from the weight's

  bool complete() const { return !targets.empty() && unmatched.empty() && mismatched.empty(); }
};

/// Looks up the weight of every adapter. Nothing is read but names and shapes.
inline LoraFit fit_lora(const LoraFile& file, const std::vector<BaseComponent>& base) {
  LoraFit fit;
  std::map<const LoraFile::Adapter*, LoraTarget> found;
  for (const BaseComponent& part : base)
    for (const std::string& key : part.weights.keys())
      if (key.ends_with(".weight"))
        if (const auto* adapter = file.find(part.name, detail::full_clip_text_name(key.substr(0, key.size() - 7))))
          found.emplace(adapter, LoraTarget{adapter, &part, key});
  for (const auto* adapter : file.adapters()) {
    const auto at = found.find(adapter);
    if (at == found.end()) {
      for (const std::string& key : {adapter->down, adapter->up, adapter->alpha_key})
        if (!key.empty()) fit.unmatched.push_back(key);
      continue;
    }
    const auto weight = detail::without_unit_kernel(at->second.part->weights.info(at->second.key).shape);
    const auto delta = detail::delta_shape(file.file().info(adapter->down).shape, file.file().info(adapter->up).shape);
    if (delta == weight)
      fit.targets.push_back(at->second);
    else
      fit.mismatched.push_back(message("\"", adapter->down, "\" and \"", adapter->up, "\" make ", shape_text(delta),
                                       ", \"", at->second.key, "\" is ", shape_text(weight)));
  }
  for (const std::string& key : file.unknown_keys()) fit.unmatched.push_back(key);
  for (const auto& other : file.other_keys()) fit.unmatched.push_back(other.key);
  std::sort(fit.unmatched.begin(), fit.unmatched.end());
  return fit;
}

}  // namespace lpo::inline LPO_ABI
