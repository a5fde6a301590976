// SPDX-License-Identifier: MIT
// Model folders as diffusers lays them out: each component in a directory with config.json and weights.
#pragma once

#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/clip_text_names.hpp>
#include <lpo/io/diffusers_config.hpp>
#include <lpo/io/parameters.hpp>
#include <lpo/model/autoencoder_kl.hpp>
#include <lpo/model/clip_text.hpp>
#include <lpo/model/unet.hpp>

namespace lpo::inline LPO_ABI {

/// What a component's directory held.
struct ComponentReport {
  JsonConfig config;   ///< its config.json; `config.unread_keys()` are the keys that lpo does not know
  LoadReport weights;  ///< `weights.unused` are tensors that the model has no use for
};

/// How a component is written.
struct ComponentOptions {
  DType dtype = DType::F32;  ///< F32, F16 or BF16
  std::string variant = {};  ///< "fp16" makes `….fp16.safetensors`
  /// Further keys: those of the config.json that was read, or `sample_size`. The model's own keys win.
  JsonConfig config = JsonConfig("config");
};

namespace detail {

inline constexpr const char* diffusers_weights = "diffusion_pytorch_model";
inline constexpr const char* transformers_weights = "model";

/// Checkpoints older than diffusers 0.15 name the projections of the autoencoder's attention differently.
inline std::string legacy_vae_name(const std::string& name) {
  static constexpr std::pair<const char*, const char*> renamed[] = {
      {".to_q.", ".query."}, {".to_k.", ".key."}, {".to_v.", ".value."}, {".to_out.0.", ".proj_attn."}};
  for (const auto& [now, before] : renamed) {
    const std::size_t at = name.find(now);
    if (at != std::string::npos)
      return name.substr(0, at) + before + name.substr(at + std::char_traits<char>::length(now));
  }
  return "";
}

/// The double nearest to a float's shortest decimal form, so that 0.18215f is written as 0.18215.
inline double as_written(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  double result = 0;
  std::from_chars(text, end, result);
  return result;
}

/// A component whose config and weights were found to fit; nothing was read yet.
template <class T, class Device>
struct OpenComponent {
  JsonConfig config;
  Checkpoint weights;
  ParameterNames names;
  MatchedParameters<T, Device> matched;

  ComponentReport read() && { return {std::move(config), read_parameters(matched, weights, names)}; }
};

template <class Config, class T, class Device>
OpenComponent<T, Device> open_component(const std::string& directory, const char* basename, const Config& compiled,
                                        const ParameterStore<T, Device>& store, const ParameterNames& names,
                                        const std::string& variant) {
  auto config = JsonConfig::from_file(directory + "/config.json");
  check_config(config, compiled);
  auto weights = open_checkpoint(directory, basename, variant);
  auto matched = match_parameters(select_parameters(store, names), weights, names);
  return {std::move(config), std::move(weights), names, std::move(matched)};
}

template <class Config, class T, class Device>
ComponentReport load_component(const std::string& directory, const char* basename, const Config& compiled,
                               const ParameterStore<T, Device>& store, const ParameterNames& names,
                               const std::string& variant) {
  return open_component(directory, basename, compiled, store, names, variant).read();
}

/// `CLIPTextModel::end_token` for a config; its eos_token_id 2 means the largest id.
inline std::int32_t end_token_of(const JsonConfig& config) {
  const auto end = config.get_or<std::int32_t>("eos_token_id", 49407);
  return end == 2 ? -1 : end;
}

template <class T, class Device>
void save_component(const std::string& directory, const char* basename, const JsonConfig& own,
                    const ParameterStore<T, Device>& store, const std::string& prefix,
                    const ComponentOptions& options) {
  make_directories(directory);
  const std::string variant = options.variant.empty() ? "" : "." + options.variant;
  save_parameters(directory + "/" + basename + variant + ".safetensors", store, options.dtype,
                  {.model_prefix = prefix});
  merged_config(options.config, own).write(directory + "/config.json");
}

}  // namespace detail

/// Reads `directory`/config.json and weights (one file or shards) into the weights that `store` holds under `prefix`.
/// The model may be the whole UNet or its encoder half, which leaves the up blocks unread. FileError if config or
/// weights do not fit; then nothing was changed. LoRA weights are not touched.
template <UNetConfig C, class T, class Device>
ComponentReport load_unet(const std::string& directory, const UNetEncoder<C, T, Device>&,
                          const ParameterStore<T, Device>& store, const std::string& prefix = "unet",
                          const std::string& variant = "") {
  return detail::load_component(directory, detail::diffusers_weights, C, store, {.model_prefix = prefix}, variant);
}

/// The same for an autoencoder; its `scaling_factor` is set too.
template <VaeConfig C, class T, class Device>
ComponentReport load_vae(const std::string& directory, AutoencoderKL<C, T, Device>& vae,
                         const ParameterStore<T, Device>& store, const std::string& prefix = "vae",
                         const std::string& variant = "") {
  auto report = detail::load_component(directory, detail::diffusers_weights, C, store,
                                       {.model_prefix = prefix, .legacy = detail::legacy_vae_name}, variant);
  vae.scaling_factor = report.config.get_or("scaling_factor", 0.18215f);
  return report;
}

/// The same for a text encoder; its `end_token` is set too.
template <ClipTextConfig C, class T, class Device>
ComponentReport load_text_encoder(const std::string& directory, CLIPTextModel<C, T, Device>& model,
                                  const ParameterStore<T, Device>& store, const std::string& prefix = "text_encoder",
                                  const std::string& variant = "") {
  auto report =
      detail::load_component(directory, detail::transformers_weights, C, store,
                             {.model_prefix = prefix, .legacy = detail::bare_clip_text_name}, variant);
  model.end_token = detail::end_token_of(report.config);
  return report;
}

/// Writes config.json and weights such that diffusers' `UNet2DConditionModel.from_pretrained(directory)` reads them.
template <UNetConfig C, class T, class Device>
void save_unet(const std::string& directory, const UNet2DCondition<C, T, Device>&,
               const ParameterStore<T, Device>& store, const std::string& prefix = "unet",
               const ComponentOptions& options = {}) {
  detail::save_component(directory, detail::diffusers_weights, unet_json(C), store, prefix, options);
}

/// The encoder half of a UNet, as reward models keep it: diffusers' config and names, without the up blocks.
template <UNetConfig C, class T, class Device>
void save_unet_encoder(const std::string& directory, const UNetEncoder<C, T, Device>&,
                       const ParameterStore<T, Device>& store, const std::string& prefix = "unet",
                       const ComponentOptions& options = {}) {
  detail::save_component(directory, detail::diffusers_weights, unet_json(C), store, prefix, options);
}

/// Writes a directory for `AutoencoderKL.from_pretrained`.
template <VaeConfig C, class T, class Device>
void save_vae(const std::string& directory, const AutoencoderKL<C, T, Device>& vae,
              const ParameterStore<T, Device>& store, const std::string& prefix = "vae",
              const ComponentOptions& options = {}) {
  detail::save_component(directory, detail::diffusers_weights, vae_json(C, detail::as_written(vae.scaling_factor)),
                         store, prefix, options);
}

/// Writes a directory for transformers' `CLIPTextModel.from_pretrained` (or `CLIPTextModelWithProjection`).
template <ClipTextConfig C, class T, class Device>
void save_text_encoder(const std::string& directory, const CLIPTextModel<C, T, Device>& model,
                       const ParameterStore<T, Device>& store, const std::string& prefix = "text_encoder",
                       const ComponentOptions& options = {}) {
  detail::save_component(directory, detail::transformers_weights, clip_text_json(C, model.end_token), store, prefix,
                         options);
}

/// `directory`/scheduler_config.json, for its own sampler or for another one (see scheduler_from_json).
inline SchedulerConfig load_scheduler(const std::string& directory, std::optional<SamplerKind> sampler = std::nullopt) {
  return scheduler_from_json(JsonConfig::from_file(directory + "/scheduler_config.json"), sampler);
}
inline void save_scheduler(const std::string& directory, const SchedulerConfig& config) {
  make_directories(directory);
  scheduler_json(config).write(directory + "/scheduler_config.json");
}

/// model_index.json: which library and class each subdirectory of a pipeline belongs to.
struct ModelIndex {
  std::string pipeline = "StableDiffusionPipeline";
  std::map<std::string, std::pair<std::string, std::string>> components;

  /// The parts of SD1.5 and SD2.1, without the safety checker.
  static ModelIndex stable_diffusion(SamplerKind sampler = SamplerKind::ddim) {
    return {"StableDiffusionPipeline",
            {{"unet", {"diffusers", "UNet2DConditionModel"}},
             {"vae", {"diffusers", "AutoencoderKL"}},
             {"text_encoder", {"transformers", "CLIPTextModel"}},
             {"tokenizer", {"transformers", "CLIPTokenizer"}},
             {"scheduler", {"diffusers", std::string(diffusers_class_of(sampler))}}}};
  }

  /// The parts of SDXL.
  static ModelIndex stable_diffusion_xl() {
    ModelIndex index = stable_diffusion();
    index.pipeline = "StableDiffusionXLPipeline";
    index.components["text_encoder_2"] = {"transformers", "CLIPTextModelWithProjection"};
    index.components["tokenizer_2"] = {"transformers", "CLIPTokenizer"};
    return index;
  }
};

inline ModelIndex load_model_index(const std::string& directory) {
  const auto file = JsonConfig::from_file(directory + "/model_index.json");
  ModelIndex index{file.get<std::string>("_class_name"), {}};
  for (const auto& [name, value] : file.original().items())
    if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string())
      index.components[name] = {value[0].template get<std::string>(), value[1].template get<std::string>()};
  return index;
}

inline JsonConfig model_index_json(const ModelIndex& index) {
  JsonConfig json("model_index");
  json.set("_class_name", index.pipeline);
  json.set("_diffusers_version", detail::diffusers_version);
  for (const auto& [name, part] : index.components) json.set(name, std::vector<std::string>{part.first, part.second});
  const auto set_absent = [&](std::initializer_list<const char*> names) {
    for (const char* name : names)
      if (!index.components.contains(name)) json.set(name, std::vector<std::optional<std::string>>(2));
  };
  if (index.pipeline == "StableDiffusionPipeline") {
    set_absent({"feature_extractor", "image_encoder", "safety_checker"});
    json.set("requires_safety_checker", false);
  } else if (index.pipeline == "StableDiffusionXLPipeline") {
    set_absent({"feature_extractor", "image_encoder"});
    json.set("force_zeros_for_empty_prompt", true);
  }
  return json;
}

inline void save_model_index(const std::string& directory, const ModelIndex& index = ModelIndex::stable_diffusion()) {
  make_directories(directory);
  model_index_json(index).write(directory + "/model_index.json");
}

}  // namespace lpo::inline LPO_ABI
