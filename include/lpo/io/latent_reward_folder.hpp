// SPDX-License-Identifier: MIT
// Folders of latent reward models as their authors release them: unet/, text_encoder/, text_encoder_2/, state_dict.pt;
// and lrm_config.json, with what the authors' programs are told by the command line.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/diffusers.hpp>
#include <lpo/io/json_config.hpp>
#include <lpo/io/torch_writer.hpp>
#include <lpo/reward/latent_reward_model.hpp>

namespace lpo::inline LPO_ABI {

/// The features that a reward model's folder was trained with.
struct StoredRewardFeatures {
  RewardFeatureOptions options;
  bool stored = true;  ///< false: the folder does not say; these are the released models'
};

/// What a reward model's folder held.
struct LatentRewardReport {
  ComponentReport unet;  ///< `unet.weights.unused` are the up blocks, which a released folder still has
  std::vector<ComponentReport> text_encoders;
  LoadReport head;
};

namespace detail {

inline constexpr std::array<const char*, 2> reward_text_encoders = {"text_encoder", "text_encoder_2"};
inline constexpr const char* reward_head = "head.safetensors";
inline constexpr const char* reward_state = "state_dict.pt";
inline constexpr const char* reward_config = "lrm_config.json";

/// The weights outside of the components, under the names of the released state_dict.
template <UNetConfig C, int TextWidth, int Width, bool TextProjection, class T, class Device>
std::vector<NamedParameter<T, Device>> reward_head_parameters(
    LatentRewardModel<C, TextWidth, Width, TextProjection, T, Device>& model) {
  std::vector<NamedParameter<T, Device>> head = {{"visual_projection.weight", &model.visual_projection.weight},
                                                 {"logit_scale", &model.logit_scale}};
  if constexpr (TextProjection) head.push_back({"text_projection.weight", &model.text_projection.weight});
  for (const auto& [name, parameter] : head) expect_memory(name, *parameter);
  return head;
}

inline constexpr std::array<const char*, 3> reward_head_names = {"visual_projection.weight", "logit_scale",
                                                                 "text_projection.weight"};

/// Opens the head's file. Where both are there they must agree, or one of them is left over from another training.
inline TensorTable open_reward_head(const std::string& directory) {
  const std::string own = directory + "/" + reward_head, state = directory + "/" + reward_state;
  if (!file_exists(own) && !file_exists(state))
    throw FileError(message("[latent_reward] ", directory, ": no head; tried ", reward_head, ", ", reward_state));
  if (!file_exists(state)) return SafetensorsFile(own);
  TensorTable released = TorchFile(state);
  if (!file_exists(own)) return released;
  TensorTable table = SafetensorsFile(own);
  for (const char* const name : reward_head_names) {
    if (!table.contains(name) || !released.contains(name)) continue;
    const auto kept = table.read_vector<float>(name), other = released.read_vector<float>(name);
    // NaN differs from itself: it would look like a head that is out of date.
    for (const auto* values : {&kept, &other})
      for (const float value : *values)
        if (!std::isfinite(value))
          throw FileError(message("[latent_reward] ", directory, "/", values == &kept ? reward_head : reward_state, ": \"",
                                  name, "\" holds ", std::isnan(value) ? "NaN" : "an infinity",
                                  "; the training that wrote it diverged"));
    if (kept != other)
      throw FileError(message("[latent_reward] ", directory, ": ", reward_head, " and ", reward_state,
                              " have different values of \"", name, "\"; remove the one that is out of date"));
  }
  return table;
}

/// Calls `function(encoder, name in the folder, name in the store)` for each.
template <class... TextEncoders, class Function>
void for_each_reward_text(const std::tuple<TextEncoders&...>& encoders, const std::string& prefix,
                          Function&& function) {
  static_assert(sizeof...(TextEncoders) <= reward_text_encoders.size(),
                "lpo latent reward folder: a reward model has at most two text encoders");
  std::size_t number = 0;
  const auto call = [&](auto& encoder) {
    const std::string name = reward_text_encoders[number++];
    function(encoder, name, dotted(prefix) + name);
  };
  std::apply([&](TextEncoders&... encoder) { (call(encoder), ...); }, encoders);
}

}  // namespace detail

/// The features that the model of a folder was trained with: of lrm_config.json, which save_latent_reward_model()
/// writes, or, where there is none, those of the released models, multi-scale as the head's width is. Pass them to
/// LatentRewardModel::use_features() before the model gets memory. FileError if the settings are no numbers and truths.
inline StoredRewardFeatures read_reward_features(const std::string& directory) {
  StoredRewardFeatures features;
  RewardFeatureOptions& o = features.options;
  const std::string path = directory + "/" + detail::reward_config;
  features.stored = file_exists(path);
  if (features.stored) {
    const auto config = JsonConfig::from_file(path);
    o.guidance = config.get<float>("guidance");
    o.multi_scale = config.get<bool>("multi_scale");
    o.multi_scale_cfg = config.get<bool>("multi_scale_cfg");
    o.sdxl_first_unguided = config.get_or("sdxl_first_unguided", false);
    if (!std::isfinite(o.guidance)) throw FileError(message("[latent_reward] ", path, ": guidance is not a finite number"));
    return features;
  }
  const std::string unet = directory + "/unet/config.json";
  if (!file_exists(unet)) return features;  // load_latent_reward_model() says what is missing
  const auto channels = JsonConfig::from_file(unet).get_or("block_out_channels", std::vector<int>{});
  const TensorTable head = detail::open_reward_head(directory);
  const char* const name = detail::reward_head_names[0];
  if (!channels.empty() && head.contains(name) && head.info(name).shape.size() == 2)
    o.multi_scale = head.info(name).shape[1] != channels.back();
  return features;
}

/// Reads a reward model and, if they are given as `std::tie(text)` or `std::tie(text, text_2)`, its text encoders. In
/// the store the model is under `prefix` and the encoders are under "text_encoder" and "text_encoder_2" below it. The
/// head (projections, logit_scale) comes from head.safetensors or the released state_dict.pt, whose logit_scale may be
/// a Python float or a tensor. Up blocks are not read. The options are left as they are: read_reward_features() has the
/// folder's. FileError names file, key, what was found and expected; then nothing was changed.
template <UNetConfig C, int TextWidth, int Width, bool TextProjection, class T, class Device, class... TextEncoders>
LatentRewardReport load_latent_reward_model(const std::string& directory,
                                            LatentRewardModel<C, TextWidth, Width, TextProjection, T, Device>& model,
                                            const ParameterStore<T, Device>& store,
                                            const std::tuple<TextEncoders&...>& text_encoders = {},
                                            const std::string& prefix = "") {
  // Everything is compared before anything is read.
  auto unet = detail::open_component(directory + "/unet", detail::diffusers_weights, C, store,
                                     {.model_prefix = detail::dotted(prefix) + "unet"}, "");
  std::vector<detail::OpenComponent<T, Device>> texts;
  std::vector<std::int32_t> end_tokens;
  detail::for_each_reward_text(text_encoders, prefix, [&](auto& encoder, const auto& folder, const auto& name) {
    texts.push_back(detail::open_component(directory + "/" + folder, detail::transformers_weights,
                                           std::remove_cvref_t<decltype(encoder)>::config, store,
                                           {.model_prefix = name, .legacy = detail::bare_clip_text_name}, ""));
    end_tokens.push_back(detail::end_token_of(texts.back().config));
  });
  const auto parameters = detail::reward_head_parameters(model);
  const TensorTable head = detail::open_reward_head(directory);
  const auto matched = detail::match_parameters(parameters, head);

  LatentRewardReport report{std::move(unet).read(), {}, detail::read_parameters(matched, head)};
  detail::for_each_reward_text(text_encoders, prefix, [&](auto& encoder, const auto&, const auto&) {
    const std::size_t number = report.text_encoders.size();
    encoder.end_token = end_tokens[number];
    report.text_encoders.push_back(std::move(texts[number]).read());
  });
  return report;
}

/// Writes such a folder, weights as `dtype` (F32, F16 or BF16): the UNet without up blocks, the text encoders, the head
/// as head.safetensors and again as state_dict.pt for the authors' Python, the model's options as lrm_config.json. Each
/// file is written whole or not at all.
/// diffusers reads the UNet with `low_cpu_mem_usage=False`; up blocks that are not there are unused by a reward model.
template <UNetConfig C, int TextWidth, int Width, bool TextProjection, class T, class Device, class... TextEncoders>
void save_latent_reward_model(const std::string& directory,
                              LatentRewardModel<C, TextWidth, Width, TextProjection, T, Device>& model,
                              const ParameterStore<T, Device>& store,
                              const std::tuple<TextEncoders&...>& text_encoders = {}, const std::string& prefix = "",
                              DType dtype = DType::F32) {
  save_unet_encoder(directory + "/unet", model.unet, store, detail::dotted(prefix) + "unet", {.dtype = dtype});
  detail::for_each_reward_text(text_encoders, prefix, [&](auto& encoder, const auto& folder, const auto& name) {
    save_text_encoder(directory + "/" + folder, encoder, store, name, {.dtype = dtype});
  });
  SafetensorsWriter head;
  TorchWriter state;
  head.set_metadata("format", "pt");
  std::vector<std::vector<T>> kept;  // on the host, until both files are written
  for (const auto& [name, parameter] : detail::reward_head_parameters(model)) {
    auto& values = kept.emplace_back(static_cast<std::size_t>(parameter->size()));
    DeviceMemory<Device>::copy_to_host(values.data(), parameter->data(), values.size() * sizeof(T));
    if (name == "logit_scale") {  // one number: nothing is gained by rounding it
      head.add_converted(name, DType::F32, {}, values.data());
      state.add_number("", name, static_cast<float>(values.front()));
    } else {
      const auto shape = detail::file_shape(*parameter);
      head.add_converted(name, dtype, shape, values.data());
      state.add(name.substr(0, name.find('.')), "weight", dtype, shape, values.data());
    }
  }
  JsonConfig features;
  features.set("guidance", detail::as_written(model.options.guidance));
  features.set("multi_scale", model.options.multi_scale);
  features.set("multi_scale_cfg", model.options.multi_scale_cfg);
  features.set("sdxl_first_unguided", model.options.sdxl_first_unguided);
  features.write(directory + "/" + detail::reward_config);
  head.write(directory + "/" + detail::reward_head);
  state.write(directory + "/" + detail::reward_state);
}

}  // namespace lpo::inline LPO_ABI
