// SPDX-License-Identifier: MIT
// The models that the example programs are compiled for, and how a program finds the one that it was given.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include <lpo/base/error.hpp>
#include <lpo/base/scalar.hpp>
#include <lpo/model/clip_text_config.hpp>
#include <lpo/model/unet_config.hpp>
#include <lpo/model/vae_config.hpp>
#include <lpo/reward/step_aware_preference_model.hpp>

#include "../tinyworld/tiny_config.hpp"

namespace examples {

/// Towers of a step-aware preference model (SPO).
struct PreferenceTowers {
  lpo::ClipVisionConfig vision = lpo::presets::step_aware_vision;
  lpo::ClipTextConfig text = lpo::presets::pickscore_text;
};

/// Architectures that belong together.
struct ModelFamily {
  const char* name;
  lpo::UNetConfig unet;
  lpo::VaeConfig vae;
  lpo::ClipTextConfig text;
  int reward_width = 0;            ///< of what its latent reward models compare; 0: it has none
  lpo::ClipTextConfig text_2{};    ///< of SDXL
  bool two_text_encoders = false;  ///< SDXL
  double default_guidance = 7.5;   ///< as diffusers' pipelines
  bool force_upcast = false;       ///< the autoencoder's activations exceed half's range
  PreferenceTowers preference{};
};

inline constexpr ModelFamily sd15_family{"sd15", lpo::presets::sd15, lpo::presets::sd_vae, lpo::presets::clip_l, 768};
inline constexpr ModelFamily sd21_family{"sd21", lpo::presets::sd21, lpo::presets::sd_vae, lpo::presets::clip_h};
inline constexpr ModelFamily sdxl_family{
    "sdxl", lpo::presets::sdxl, lpo::presets::sd_vae, lpo::presets::clip_l, 1280, lpo::presets::clip_bigg, true, 5.0,
    true};
inline constexpr ModelFamily tiny_family{"tiny world", tinyworld::unet_config, tinyworld::vae_config,
                                         tinyworld::text_config, 128, {}, false, 7.5, false,
                                         {tinyworld::vision_config, tinyworld::preference_text_config}};

/// The family of the reward models that score a family's latents: its own, or one that shares its autoencoder.
template <const ModelFamily& F>
struct RewardFamily {
  static constexpr const ModelFamily& value = F;
};
template <>
struct RewardFamily<sd21_family> {
  static constexpr const ModelFamily& value = sd15_family;
};

/// What a model of a family keeps its autoencoder in when the rest is stored as T.
template <const ModelFamily& F, class T>
using VaeStorage = std::conditional_t<F.force_upcast && std::is_same_v<T, lpo::half>, float, T>;

/// The name that diffusers has for a storage type.
template <class T>
constexpr const char* storage_name = std::is_same_v<T, float>           ? "float32"
                                     : std::is_same_v<T, lpo::bfloat16> ? "bfloat16"
                                                                        : "float16";

// CMake says which families and storage types a program is built with (LPO_EXAMPLE_FAMILIES; LPO_EXAMPLE_DTYPES
// for txt2img, LPO_TRAIN_DTYPES for train_lpo and train_dpo).
#ifndef LPO_FAMILIES
#define LPO_FAMILIES tiny_family
#endif
#ifndef LPO_STORAGES
#define LPO_STORAGES float
#endif

template <const ModelFamily&...>
struct FamilyList {};
using Families = FamilyList<LPO_FAMILIES>;

template <class...>
struct StorageList {};
using Storages = StorageList<LPO_STORAGES>;

namespace detail {

template <const ModelFamily&... F, class Differences, class Use>
void with_family(FamilyList<F...>, const std::string& path, const Differences& differences, const Use& use) {
  const char* nearest = "";
  std::vector<std::string> fewest;
  std::string names;
  const auto fits = [&](const ModelFamily& family) {
    const auto list = differences(family);
    if (fewest.empty() || list.size() < fewest.size()) nearest = family.name, fewest = list;
    names += (names.empty() ? "" : ", ") + std::string(family.name);
    return list.empty();
  };
  const bool found = ((fits(F) ? (use.template operator()<F>(), true) : false) || ...);
  if (found) return;
  std::string text;
  for (const std::string& one : fewest) text += (text.empty() ? "" : "; ") + one;
  throw lpo::FileError(lpo::message("[model] ", path, ": is none of the models that this program is compiled for (",
                                    names, "); nearest is ", nearest, ", from which it differs in: ", text));
}

template <class... T, class Use>
void with_storage(StorageList<T...>, const std::string& name, const Use& use) {
  std::string names;
  ((names += (names.empty() ? "" : ", ") + std::string(storage_name<T>)), ...);
  const bool found = ((name == storage_name<T> ? (use.template operator()<T>(), true) : false) || ...);
  if (!found)
    throw lpo::ValueError(
        lpo::message("[model] dtype is ", name, "; this program is compiled for ", names,
                     "; CMake's LPO_EXAMPLE_DTYPES (txt2img) and LPO_TRAIN_DTYPES (train_lpo, train_dpo) add more"));
}

}  // namespace detail

/// Calls `use.operator()<F>()` for the family F that `differences(F)` is empty for. FileError says in what the model at
/// `path` differs from the nearest.
template <class Differences, class Use>
void with_family(const std::string& path, const Differences& differences, const Use& use) {
  detail::with_family(Families(), path, differences, use);
}

/// Calls `use.operator()<R>()` for the family R of the reward models that score latents of family F: its own, or one
/// that shares its autoencoder.
template <const ModelFamily& F, class Use>
void with_reward_family(const Use& use) {
  if constexpr (&F == &sd21_family)
    use.template operator()<sd15_family>();
  else
    use.template operator()<F>();
}

/// Calls `use.operator()<T>()` for the storage type of this name ("bfloat16").
template <class Use>
void with_storage(const std::string& name, const Use& use) {
  detail::with_storage(Storages(), name, use);
}

}  // namespace examples
