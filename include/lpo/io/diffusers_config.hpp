// SPDX-License-Identifier: MIT
// config.json of diffusers and transformers components: written from compiled configs and compared with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/diffusion/scheduler_config.hpp>
#include <lpo/io/json_config.hpp>
#include <lpo/model/clip_text_config.hpp>
#include <lpo/model/unet_config.hpp>
#include <lpo/model/vae_config.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// The diffusers release whose keys and defaults these functions follow; written as `_diffusers_version`.
inline constexpr const char* diffusers_version = "0.35.2";

/// The settings of a component with every default filled in and every int-or-list spelled out, so that two configs mean
/// the same exactly if these are equal.
using CanonicalConfig = OrderedJson;

using ConfigDefaults = std::initializer_list<std::pair<const char*, OrderedJson>>;

/// Copies the listed keys; a key that is missing or null takes its default.
inline void copy_with_defaults(const JsonConfig& file, ConfigDefaults defaults, CanonicalConfig& into) {
  for (const auto& [key, absent] : defaults) into[key] = file.has(key) ? file.original().at(key) : absent;
}

/// One value if all are equal, else the list.
inline OrderedJson one_or_all(const std::vector<int>& values) {
  for (const int value : values)
    if (value != values.front()) return values;
  return values.empty() ? OrderedJson(nullptr) : OrderedJson(values.front());
}

inline CanonicalConfig canonical_unet(const JsonConfig& file) {
  CanonicalConfig out = OrderedJson::object();
  const auto channels = file.get_or<std::vector<int>>("block_out_channels", {320, 640, 1280, 1280});
  const std::size_t levels = channels.size();
  out["block_out_channels"] = channels;
  std::vector<std::string> down = {"CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                                   "DownBlock2D"};
  std::vector<std::string> up = {"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"};
  down = file.get_or("down_block_types", down);
  up = file.get_or("up_block_types", up);
  out["down_block_types"] = down;
  out["up_block_types"] = up;
  out["layers_per_block"] = one_or_all(file.get_per_level_or<int>("layers_per_block", levels, 2));
  out["cross_attention_dim"] = one_or_all(file.get_per_level_or<int>("cross_attention_dim", levels, 1280));
  // `attention_head_dim` holds the number of heads, a naming mistake of the first release that files keep.
  auto heads = file.get_per_level_or<int>("attention_head_dim", levels, 8);
  if (file.has("num_attention_heads")) heads = file.get_per_level<int>("num_attention_heads", levels);
  auto depth = file.get_per_level_or<int>("transformer_layers_per_block", levels, 1);
  out["mid_transformer_layers"] = depth.empty() ? 0 : depth.back();
  for (std::size_t i = 0; i < levels && i < down.size(); ++i) {
    if (down[i].starts_with("CrossAttn")) continue;
    depth[i] = 0;                      // blocks without attention ignore both numbers,
    if (i + 1 < levels) heads[i] = 0;  // but the middle block takes the last one's heads
  }
  out["attention_head_dim"] = heads;
  out["transformer_layers_per_block"] = depth;
  copy_with_defaults(file,
                     {{"in_channels", 4},
                      {"out_channels", 4},
                      {"use_linear_projection", false},
                      {"norm_num_groups", 32},
                      {"addition_embed_type", nullptr},
                      {"addition_time_embed_dim", nullptr},
                      {"projection_class_embeddings_input_dim", nullptr},
                      // What a compiled UNet cannot vary:
                      {"act_fn", "silu"},
                      {"attention_type", "default"},
                      {"center_input_sample", false},
                      {"class_embed_type", nullptr},
                      {"conv_in_kernel", 3},
                      {"conv_out_kernel", 3},
                      {"cross_attention_norm", nullptr},
                      {"downsample_padding", 1},
                      {"dropout", 0.0},
                      {"dual_cross_attention", false},
                      {"encoder_hid_dim", nullptr},
                      {"encoder_hid_dim_type", nullptr},
                      {"flip_sin_to_cos", true},
                      {"freq_shift", 0},
                      {"mid_block_scale_factor", 1},
                      {"mid_block_type", "UNetMidBlock2DCrossAttn"},
                      {"norm_eps", 1e-5},
                      {"num_class_embeds", nullptr},
                      {"only_cross_attention", false},
                      {"resnet_out_scale_factor", 1.0},
                      {"resnet_skip_time_act", false},
                      {"resnet_time_scale_shift", "default"},
                      {"reverse_transformer_layers_per_block", nullptr},
                      {"time_cond_proj_dim", nullptr},
                      {"time_embedding_act_fn", nullptr},
                      {"time_embedding_dim", nullptr},
                      {"time_embedding_type", "positional"},
                      {"timestep_post_act", nullptr}},
                     out);
  // Known, without effect on the numbers, or fixed by the keys above.
  for (const char* key : {"sample_size", "upcast_attention", "addition_embed_type_num_heads", "class_embeddings_concat",
                          "mid_block_only_cross_attention"})
    file.has(key);
  return out;
}

inline CanonicalConfig canonical_vae(const JsonConfig& file) {
  CanonicalConfig out = OrderedJson::object();
  copy_with_defaults(file,
                     {{"in_channels", 3},
                      {"out_channels", 3},
                      {"latent_channels", 4},
                      {"block_out_channels", OrderedJson::array({64})},
                      {"down_block_types", OrderedJson::array({"DownEncoderBlock2D"})},
                      {"up_block_types", OrderedJson::array({"UpDecoderBlock2D"})},
                      {"layers_per_block", 1},
                      {"norm_num_groups", 32},
                      {"mid_block_add_attention", true},
                      {"use_quant_conv", true},
                      {"use_post_quant_conv", true},
                      {"act_fn", "silu"},
                      {"shift_factor", nullptr}},
                     out);
  for (const char* key : {"sample_size", "force_upcast", "scaling_factor", "latents_mean", "latents_std"})
    file.has(key);
  return out;
}

inline CanonicalConfig canonical_clip_text(const JsonConfig& file) {
  CanonicalConfig out = OrderedJson::object();
  copy_with_defaults(file,
                     {{"vocab_size", 49408},
                      {"hidden_size", 512},
                      {"intermediate_size", 2048},
                      {"num_hidden_layers", 12},
                      {"num_attention_heads", 8},
                      {"max_position_embeddings", 77},
                      {"hidden_act", "quick_gelu"},
                      {"layer_norm_eps", 1e-5}},
                     out);
  const auto classes = file.get_or<std::vector<std::string>>("architectures", {});
  const bool projected = !classes.empty() && classes.front() == "CLIPTextModelWithProjection";
  out["architectures"] = OrderedJson::array({projected ? "CLIPTextModelWithProjection" : "CLIPTextModel"});
  const int projection = file.get_or("projection_dim", 512);
  if (projected) out["projection_dim"] = projection;
  for (const char* key : {"attention_dropout", "bos_token_id", "dropout", "dtype", "eos_token_id", "initializer_factor",
                          "initializer_range", "model_type", "pad_token_id", "torch_dtype", "transformers_version"})
    file.has(key);
  return out;
}

/// Every setting in which the file differs from the model, with both values.
inline std::vector<std::string> differences(const CanonicalConfig& found, const CanonicalConfig& model) {
  std::vector<std::string> list;
  for (const auto& [key, value] : model.items()) {
    const auto other = found.find(key);
    const OrderedJson absent(nullptr);
    const OrderedJson& in_file = other == found.end() ? absent : *other;
    if (in_file == value) continue;
    list.push_back(message(key, " is ", json_preview(in_file), " in the file, ", json_preview(value), " in the model"));
  }
  return list;
}

/// FileError that lists them, if there are any; `model_name` says what the file is compared with.
inline void expect_no_differences(const std::string& file, const std::vector<std::string>& list,
                                  const char* model_name = "the compiled model") {
  std::string all;
  for (const std::string& one : list) all += (all.empty() ? " " : "; ") + one;
  if (!all.empty()) throw FileError(message("[config] ", file, ": does not match ", model_name, ":", all));
}
inline void expect_same_config(const std::string& file, const CanonicalConfig& found, const CanonicalConfig& model,
                               const char* model_name = "the compiled model") {
  expect_no_differences(file, differences(found, model), model_name);
}

/// `file`'s keys (those the model does not know about, sizes, notes) under the model's own.
inline JsonConfig merged_config(const JsonConfig& file, const JsonConfig& model) {
  OrderedJson sorted = OrderedJson::object();
  std::map<std::string, OrderedJson> keys;
  for (const auto& [key, value] : file.original().items()) keys[key] = value;
  for (const auto& [key, value] : model.original().items()) keys[key] = value;
  for (const auto& [key, value] : keys) sorted[key] = value;
  return JsonConfig::from_text(sorted.dump(), model.name());
}

}  // namespace detail

/// The config.json that diffusers needs to build this UNet. ValueError where diffusers has no such UNet.
inline JsonConfig unet_json(const UNetConfig& c) {
  const auto levels = static_cast<std::size_t>(c.levels);
  const auto first = [&](const auto& values) { return std::vector<int>(values.begin(), values.begin() + c.levels); };
  std::vector<std::string> down, up;
  std::vector<int> depth = first(c.transformer_depth), heads = first(c.heads);
  if (depth.back() != 0 && depth.back() != c.mid_depth)
    throw ValueError(message("[unet_json] the middle block is ", c.mid_depth, " transformers deep, the last level ",
                             depth.back(), "; diffusers has one number for both"));
  if (c.mid_depth == 0) throw ValueError("[unet_json] diffusers has no such middle block without attention");
  for (std::size_t i = 0; i < levels; ++i) {
    const bool attention = depth[i] > 0;
    down.push_back(attention ? "CrossAttnDownBlock2D" : "DownBlock2D");
    up.insert(up.begin(), attention ? "CrossAttnUpBlock2D" : "UpBlock2D");
    if (!attention) depth[i] = i + 1 == levels ? c.mid_depth : 1;
    if (heads[i] == 0) heads[i] = i == 0 ? heads.back() : heads[i - 1];
  }
  JsonConfig json("UNet2DConditionModel");
  json.set("_class_name", "UNet2DConditionModel");
  json.set("_diffusers_version", detail::diffusers_version);
  json.set("act_fn", "silu");
  if (c.addition_width > 0) {
    json.set("addition_embed_type", "text_time");
    json.set("addition_time_embed_dim", c.addition_time_width);
    json.set("projection_class_embeddings_input_dim", c.addition_width);
  } else {
    for (const char* key : {"addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"})
      json.set_null(key);
  }
  const auto set_levels = [&](const char* key, const std::vector<int>& values) {
    const OrderedJson value = detail::one_or_all(values);
    value.is_array() ? json.set(key, values) : json.set(key, values.front());
  };
  set_levels("attention_head_dim", heads);
  set_levels("transformer_layers_per_block", depth);
  json.set("block_out_channels", first(c.channels));
  json.set("center_input_sample", false);
  json.set("cross_attention_dim", c.context_width);
  json.set("down_block_types", down);
  json.set("downsample_padding", 1);
  json.set("flip_sin_to_cos", true);
  json.set("freq_shift", 0);
  json.set("in_channels", c.in_channels);
  json.set("layers_per_block", c.layers_per_block);
  json.set("mid_block_scale_factor", 1);
  json.set("norm_eps", 1e-5);
  json.set("norm_num_groups", c.groups);
  json.set("out_channels", c.out_channels);
  json.set("up_block_types", up);
  json.set("use_linear_projection", c.linear_projection);
  return json;
}

/// The config.json that diffusers needs to build this autoencoder.
inline JsonConfig vae_json(const VaeConfig& c, double scaling_factor) {
  const auto levels = static_cast<std::size_t>(c.levels);
  JsonConfig json("AutoencoderKL");
  json.set("_class_name", "AutoencoderKL");
  json.set("_diffusers_version", detail::diffusers_version);
  json.set("act_fn", "silu");
  json.set("block_out_channels", std::vector<int>(c.channels.begin(), c.channels.begin() + c.levels));
  json.set("down_block_types", std::vector<std::string>(levels, "DownEncoderBlock2D"));
  json.set("in_channels", c.in_channels);
  json.set("latent_channels", c.latent_channels);
  json.set("layers_per_block", c.layers_per_block);
  json.set("mid_block_add_attention", c.mid_attention);
  json.set("norm_num_groups", c.groups);
  json.set("out_channels", c.out_channels);
  json.set("scaling_factor", scaling_factor);
  json.set("up_block_types", std::vector<std::string>(levels, "UpDecoderBlock2D"));
  json.set("use_post_quant_conv", c.post_quant_conv);
  json.set("use_quant_conv", c.quant_conv);
  return json;
}

/// The config.json that transformers needs to build this text encoder. `end_token` as in `CLIPTextModel`.
inline JsonConfig clip_text_json(const ClipTextConfig& c, std::int32_t end_token = -1) {
  JsonConfig json("CLIPTextModel");
  json.set("architectures",
           std::vector<std::string>{c.projection > 0 ? "CLIPTextModelWithProjection" : "CLIPTextModel"});
  json.set("attention_dropout", 0.0);
  json.set("bos_token_id", c.vocabulary - 2);
  json.set("dtype", "float32");
  json.set("eos_token_id", end_token < 0 ? 2 : end_token);  // 2 is how transformers spells "the largest id"
  json.set("hidden_act", c.quick_gelu ? "quick_gelu" : "gelu");
  json.set("hidden_size", c.width);
  json.set("intermediate_size", c.hidden);
  json.set("layer_norm_eps", 1e-5);
  json.set("max_position_embeddings", c.positions);
  json.set("model_type", "clip_text_model");
  json.set("num_attention_heads", c.heads);
  json.set("num_hidden_layers", c.layers);
  json.set("pad_token_id", c.vocabulary - 1);
  json.set("projection_dim", c.projection > 0 ? c.projection : c.width);
  json.set("vocab_size", c.vocabulary);
  return json;
}

/// Each setting in which `file` differs from the compiled config, as "key is 4 in the file, 8 in the model". Settings that
/// the file leaves out mean diffusers' defaults. Afterwards `file.unread_keys()` are those that nobody knows.
inline std::vector<std::string> config_differences(const JsonConfig& file, const UNetConfig& compiled) {
  return detail::differences(detail::canonical_unet(file), detail::canonical_unet(unet_json(compiled)));
}
inline std::vector<std::string> config_differences(const JsonConfig& file, const VaeConfig& compiled) {
  return detail::differences(detail::canonical_vae(file), detail::canonical_vae(vae_json(compiled, 1.0)));
}
inline std::vector<std::string> config_differences(const JsonConfig& file, const ClipTextConfig& compiled) {
  return detail::differences(detail::canonical_clip_text(file), detail::canonical_clip_text(clip_text_json(compiled)));
}

/// FileError that lists them, if there are any.
template <class Config>
void check_config(const JsonConfig& file, const Config& compiled) {
  detail::expect_no_differences(file.name(), config_differences(file, compiled));
}

namespace detail {

/// FileError if the key is there and not null.
inline void expect_null(const JsonConfig& file, const std::string& key) {
  if (file.has(key))
    throw FileError(
        message("[config] ", file.name(), ": ", key, " is ", json_preview(file.original().at(key)), ", expected null"));
}

/// FileError unless the key has this value, is missing, or is null.
template <class T>
void expect_scheduler_value(const JsonConfig& file, const std::string& key, const T& expected) {
  if (file.get_or<T>(key, expected) == expected) return;
  throw FileError(message("[config] ", file.name(), ": ", key, " is ", json_preview(file.original().at(key)),
                          ", expected ", json_preview(config_json(expected)),
                          "; change it or name another sampler to read the file for"));
}

/// Settings of diffusers' schedulers that lpo has in one form only.
inline void check_sampler_settings(const JsonConfig& file, SamplerKind sampler) {
  const bool euler = sampler == SamplerKind::euler;
  const bool dpm = sampler == SamplerKind::dpmpp_2m || sampler == SamplerKind::dpmpp_2m_karras;
  if (euler || dpm)
    for (const char* key : {"use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"})
      expect_scheduler_value(file, key, false);
  if (euler) {
    expect_scheduler_value<std::string>(file, "interpolation_type", "linear");
    expect_scheduler_value<std::string>(file, "timestep_type", "discrete");
    expect_null(file, "sigma_min");
    expect_null(file, "sigma_max");
  }
  if (dpm) {
    expect_scheduler_value<std::string>(file, "algorithm_type", "dpmsolver++");
    expect_scheduler_value<std::string>(file, "solver_type", "midpoint");
    expect_scheduler_value(file, "solver_order", 2);
    expect_null(file, "lambda_min_clipped");
  }
  if (sampler == SamplerKind::ddpm) expect_scheduler_value<std::string>(file, "variance_type", "fixed_small");
}

/// FileError for diffusers' schedulers of models that are no denoisers of latents with a beta for each timestep: what
/// their networks predict, and of what, has another meaning.
inline void refuse_other_kinds(const JsonConfig& file, const std::string& name) {
  const auto refuse = [&](const char* kind) {
    throw FileError(message("[config] ", file.name(), ": _class_name is ", name, ", of models of another kind (", kind,
                            "); lpo reads those that denoise along a schedule of betas, such as DDIMScheduler"));
  };
  if (name.starts_with("FlowMatch") || file.get_or("use_flow_sigmas", false) ||
      file.get_or<std::string>("prediction_type", "epsilon") == "flow_prediction")
    refuse("flow matching");
  for (const char* preconditioned : {"EDM", "CosineDPMSolver", "KarrasVe"})
    if (name.starts_with(preconditioned)) refuse("a noise level in place of timesteps");
  for (const char* consistency : {"CMStochasticIterative", "ConsistencyDecoder"})
    if (name.starts_with(consistency)) refuse("consistency models");
  if (name.starts_with("ScoreSde")) refuse("stochastic differential equations");
  for (const char* discrete : {"VQDiffusion", "Amused"})
    if (name.starts_with(discrete)) refuse("discrete tokens");
}

}  // namespace detail

/// The class of a scheduler_config.json where lpo has no sampler of it, such as UniPCMultistepScheduler; empty where it has.
inline std::string unknown_scheduler_class(const JsonConfig& file) {
  const std::string name = file.get_or("_class_name", "DDIMScheduler");
  return find_sampler(name) ? "" : name;
}

/// A scheduler_config.json of any of diffusers' schedulers, read for its own sampler or, like diffusers' `from_config`,
/// for another one: what the file leaves out means the defaults of the sampler that it is read for. Only latents that
/// are clipped by both are clipped. A class that lpo does not have is read for ddim: its noise schedule is, its sampler is not
/// (unknown_scheduler_class). FileError for schedulers of models of another kind, such as flow matching.
inline SchedulerConfig scheduler_from_json(const JsonConfig& file, std::optional<SamplerKind> sampler = std::nullopt) {
  SchedulerConfig c;
  const std::string own = file.get_or("_class_name", "DDIMScheduler");
  if (!find_sampler(own)) detail::refuse_other_kinds(file, own);
  const std::string name = sampler ? std::string(diffusers_class_of(*sampler)) : own;
  c.sampler = sampler ? *sampler : find_sampler(own).value_or(SamplerKind::ddim);
  c.num_train_timesteps = file.get_or("num_train_timesteps", 1000);
  c.beta_start = file.get_or("beta_start", 0.0001);
  c.beta_end = file.get_or("beta_end", 0.02);
  c.beta_schedule = parse_beta_schedule(file.get_or("beta_schedule", "linear"));
  c.prediction_type = parse_prediction_type(file.get_or("prediction_type", "epsilon"));
  c.steps_offset = file.get_or("steps_offset", 0);
  c.set_alpha_to_one = file.get_or("set_alpha_to_one", name == "DDIMScheduler");
  const auto clips = [](const std::string& scheduler) {
    return scheduler == "DDIMScheduler" || scheduler == "DDPMScheduler";
  };
  c.clip_sample = file.get_or("clip_sample", clips(own) && clips(name));
  const bool in_sigma = name.starts_with("Euler") || name.starts_with("DPMSolverMultistep");
  c.timestep_spacing = parse_timestep_spacing(file.get_or("timestep_spacing", in_sigma ? "linspace" : "leading"));
  c.rescale_betas_zero_snr = file.get_or("rescale_betas_zero_snr", false);
  c.use_karras_sigmas = file.get_or("use_karras_sigmas", false);
  c.final_sigmas_type = parse_final_sigmas_type(file.get_or("final_sigmas_type", "zero"));
  c.lower_order_final = file.get_or("lower_order_final", true);
  c.euler_at_final = file.get_or("euler_at_final", false);
  c.skip_prk_steps = file.get_or("skip_prk_steps", own != "PNDMScheduler");
  detail::expect_null(file, "trained_betas");
  if (file.get_or("thresholding", false))
    throw FileError(message("[config] ", file.name(), ": thresholding is true, expected false"));
  detail::check_sampler_settings(file, c.sampler);
  return c;
}

/// The scheduler_config.json of the class of `c.sampler` with these settings.
inline JsonConfig scheduler_json(const SchedulerConfig& c) {
  const std::string name(diffusers_class_of(c.sampler));
  const bool euler = c.sampler == SamplerKind::euler, dpm = name == "DPMSolverMultistepScheduler";
  JsonConfig json(name);
  json.set("_class_name", name);
  json.set("_diffusers_version", detail::diffusers_version);
  if (dpm) json.set("algorithm_type", "dpmsolver++");
  json.set("beta_end", c.beta_end);
  json.set("beta_schedule", std::string(name_of(c.beta_schedule)));
  json.set("beta_start", c.beta_start);
  json.set("clip_sample", c.clip_sample);
  if (dpm) json.set("euler_at_final", c.euler_at_final);
  if (dpm || euler) json.set("final_sigmas_type", std::string(name_of(c.final_sigmas_type)));
  if (dpm) json.set("lower_order_final", c.lower_order_final);
  json.set("num_train_timesteps", c.num_train_timesteps);
  json.set("prediction_type", std::string(name_of(c.prediction_type)));
  json.set("rescale_betas_zero_snr", c.rescale_betas_zero_snr);
  json.set("set_alpha_to_one", c.set_alpha_to_one);
  if (c.sampler == SamplerKind::pndm) json.set("skip_prk_steps", c.skip_prk_steps);
  if (dpm) json.set("solver_order", 2);
  if (dpm) json.set("solver_type", "midpoint");
  json.set("steps_offset", c.steps_offset);
  json.set("thresholding", false);
  json.set("timestep_spacing", std::string(name_of(c.timestep_spacing)));
  json.set_null("trained_betas");
  if (dpm || euler) json.set("use_karras_sigmas", c.use_karras_sigmas || c.sampler == SamplerKind::dpmpp_2m_karras);
  return json;
}

}  // namespace lpo::inline LPO_ABI
