// SPDX-License-Identifier: MIT
// The models that the example programs are compiled for, and which of them a model folder holds.
#pragma once

#include <array>
#include <string>
#include <vector>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/diffusers_config.hpp>

#include "../tinyworld/tiny_config.hpp"

namespace examples {

/// Architectures that belong together.
struct ModelFamily {
  const char* name;
  lpo::UNetConfig unet;
  lpo::VaeConfig vae;
  lpo::ClipTextConfig text;
  lpo::ClipTextConfig text_2{};    ///< of SDXL
  bool two_text_encoders = false;  ///< SDXL
  double default_guidance = 7.5;   ///< as diffusers' pipelines
};

inline constexpr ModelFamily sd15_family{"sd15", lpo::presets::sd15, lpo::presets::sd_vae, lpo::presets::clip_l};
inline constexpr ModelFamily sd21_family{"sd21", lpo::presets::sd21, lpo::presets::sd_vae, lpo::presets::clip_h};
inline constexpr ModelFamily sdxl_family{
    "sdxl", lpo::presets::sdxl, lpo::presets::sd_vae, lpo::presets::clip_l, lpo::presets::clip_bigg, true, 5.0};
inline constexpr ModelFamily tiny_family{"tiny world", tinyworld::unet_config, tinyworld::vae_config,
                                         tinyworld::text_config};

/// What does not fit between a folder's component and a family, as "unet/config.json: key is 4 in the file, ...".
template <class Config>
void add_differences(std::vector<std::string>& list, const std::string& folder, const std::string& component,
                     const Config& config) {
  const auto file = lpo::JsonConfig::from_file(folder + "/" + component + "/config.json");
  for (const std::string& one : lpo::config_differences(file, config))
    list.push_back(component + "/config.json: " + one);
}

/// All components of a pipeline's folder.
inline std::vector<std::string> pipeline_differences(const std::string& folder, const ModelFamily& family) {
  std::vector<std::string> list;
  add_differences(list, folder, "unet", family.unet);
  if (lpo::file_exists(folder + "/text_encoder_2/config.json") != family.two_text_encoders) {
    list.push_back(family.two_text_encoders ? "text_encoder_2 is missing" : "text_encoder_2 is one too many");
  } else {
    add_differences(list, folder, "text_encoder", family.text);
    if (family.two_text_encoders) add_differences(list, folder, "text_encoder_2", family.text_2);
  }
  add_differences(list, folder, "vae", family.vae);
  return list;
}

/// The entry of `table` (each with a `family`) whose family the folder holds. FileError says in what the nearest
/// differs.
template <class Table, class Differences>
const auto& match_family(const std::string& folder, const Table& table, const Differences& differences) {
  const char* nearest = "";
  std::vector<std::string> fewest;
  std::string names;
  for (const auto& entry : table) {
    const auto list = differences(folder, *entry.family);
    if (list.empty()) return entry;
    if (fewest.empty() || list.size() < fewest.size()) nearest = entry.family->name, fewest = list;
    names += (names.empty() ? "" : ", ") + std::string(entry.family->name);
  }
  std::string text;
  for (const std::string& one : fewest) text += (text.empty() ? "" : "; ") + one;
  throw lpo::FileError(lpo::message("[model] ", folder, ": is none of the models that this program is compiled for (",
                                    names, "); nearest is ", nearest, ", from which it differs in: ", text));
}

/// Parameters and bytes of a component's weights, from the headers of its files.
struct WeightSize {
  lpo::index_t parameters = 0;
  std::size_t file_bytes = 0;
};
inline WeightSize weight_size(const std::string& folder, const char* basename, const std::string& variant) {
  const auto checkpoint = lpo::open_checkpoint(folder, basename, variant);
  WeightSize size;
  for (const std::string& key : checkpoint.keys()) {
    const auto& info = checkpoint.info(key);
    size.parameters += info.count();
    size.file_bytes += info.bytes;
  }
  return size;
}

}  // namespace examples
