// SPDX-License-Identifier: MIT
// diffusers' directories: released configs fit the presets, differences are listed, what is written is read again.
#include <lpo/io/config_from_json.hpp>
#include <lpo/io/diffusers.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>

#include "bare_clip_text.hpp"
#include "golden_file.hpp"
#include "model/model_goldens.hpp"
#include "stored_models.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

/// As published with the three UNets, bookkeeping keys left out.
constexpr const char* sd15_unet =
    R"({"act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": false, "cross_attention_dim": 768, "down_block_types": ["CrossAttnDownBlock2D",
  "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": true,
  "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
  "norm_num_groups": 32, "out_channels": 4, "sample_size": 64, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D",
  "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]})";
constexpr const char* sd21_unet = R"({"act_fn": "silu", "attention_head_dim": [5, 10, 20, 20], "block_out_channels":
  [320, 640, 1280, 1280], "center_input_sample": false, "cross_attention_dim": 1024, "down_block_types":
  ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1,
  "dual_cross_attention": false, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
  "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "num_class_embeds": null,
  "only_cross_attention": false, "out_channels": 4, "sample_size": 64, "up_block_types": ["UpBlock2D",
  "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], "use_linear_projection": true})";
constexpr const char* sdxl_unet =
    R"({"act_fn": "silu", "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
  "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280],
  "center_input_sample": false, "class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3,
  "conv_out_kernel": 3, "cross_attention_dim": 2048, "cross_attention_norm": null, "down_block_types": ["DownBlock2D",
  "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1, "dual_cross_attention": false,
  "encoder_hid_dim": null, "encoder_hid_dim_type": null, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
  "layers_per_block": 2, "mid_block_only_cross_attention": null, "mid_block_scale_factor": 1, "mid_block_type":
  "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32, "num_attention_heads": null, "num_class_embeds":
  null, "only_cross_attention": false, "out_channels": 4, "projection_class_embeddings_input_dim": 2816,
  "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false, "resnet_time_scale_shift": "default",
  "sample_size": 128,
  "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim": null, "time_embedding_type":
  "positional", "timestep_post_act": null, "transformer_layers_per_block": [1, 2, 10], "up_block_types":
  ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null, "use_linear_projection": true})";
constexpr const char* sd15_scheduler =
    R"({"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
  "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
  "steps_offset": 1, "trained_betas": null, "clip_sample": false})";

template <class Config>
void check_fits(const std::string& text, const Config& compiled) {
  const auto json = JsonConfig::from_text(text, "config.json");
  CHECK_NOTHROW(check_config(json, compiled));
  CHECK(json.unread_keys().empty());
}

}  // namespace

TEST_CASE("published configs fit the presets and hold no unknown keys") {
  check_fits(sd15_unet, presets::sd15);
  check_fits(sd21_unet, presets::sd21);
  check_fits(sdxl_unet, presets::sdxl);
}

TEST_CASE("configs that diffusers and transformers wrote fit the compiled models") {
  check_fits(golden::open("unet_sd15").metadata().at("config"), golden::sd15);
  check_fits(golden::open("unet_sd21").metadata().at("config"), golden::sd21);
  check_fits(golden::open("unet_sdxl").metadata().at("config"), golden::sdxl);
  check_fits(golden::open("vae").metadata().at("config"), golden::vae);
  check_fits(golden::open("clip_text").metadata().at("config_quick"), golden::quick_text);
  check_fits(golden::open("clip_text").metadata().at("config_gelu"), ClipTextConfig{.vocabulary = 48,
                                                                                    .width = 16,
                                                                                    .hidden = 40,
                                                                                    .layers = 2,
                                                                                    .heads = 4,
                                                                                    .positions = 11,
                                                                                    .quick_gelu = false,
                                                                                    .projection = 12});
}

TEST_CASE("one error lists every differing key with both values") {
  const auto json = JsonConfig::from_text(sd15_unet, "some/config.json");
  const auto text = message_of<FileError>([&] { check_config(json, presets::sd21); });
  CHECK(text ==
        "[config] some/config.json: does not match the compiled model: cross_attention_dim is 768 in the file, 1024 in "
        "the model; attention_head_dim is [8,8,8,8] in the file, [5,10,20,20] in the model; use_linear_projection is "
        "false in the file, true in the model");
  const auto other = JsonConfig::from_text(R"({"act_fn": "gelu", "latent_channels": 16})", "vae");
  const auto vae = message_of<FileError>([&] {
    check_config(other, VaeConfig{.levels = 1, .channels = {64, 0, 0, 0}, .layers_per_block = 1});
  });
  CHECK(has_part(vae, "act_fn is \"gelu\" in the file, \"silu\" in the model"));
  CHECK(has_part(vae, "latent_channels is 16 in the file, 4 in the model"));
}

TEST_CASE("what compiled configs write is read as themselves") {
  for (const UNetConfig& c : {presets::sd15, presets::sd21, presets::sdxl, golden::sd15, golden::sd21, golden::sdxl})
    check_fits(unet_json(c).text(), c);
  check_fits(vae_json(presets::sd_vae, 0.13025).text(), presets::sd_vae);
  for (const ClipTextConfig& c : {presets::clip_l, presets::clip_h, presets::clip_bigg})
    check_fits(clip_text_json(c).text(), c);
}

TEST_CASE("architectures are read from config.json") {
  const auto json = [](const std::string& text) { return JsonConfig::from_text(text, "config.json"); };
  CHECK(unet_config_from_json(json(sd15_unet)) == presets::sd15);
  CHECK(unet_config_from_json(json(sd21_unet)) == presets::sd21);
  const auto xl = unet_config_from_json(json(sdxl_unet));
  CHECK(xl == presets::sdxl);
  for (const UNetConfig& c : {golden::sd15, golden::sd21, golden::sdxl})
    CHECK(unet_config_from_json(unet_json(c)) == c);
  CHECK(unet_config_from_json(json(golden::open("unet_sdxl").metadata().at("config"))) == golden::sdxl);
  CHECK(vae_config_from_json(json(golden::open("vae").metadata().at("config"))) == golden::vae);
  CHECK(vae_config_from_json(vae_json(presets::sd_vae, 1)) == presets::sd_vae);
  CHECK(clip_text_config_from_json(json(golden::open("clip_text").metadata().at("config_quick"))) == golden::quick_text);
  for (const ClipTextConfig& c : {presets::clip_l, presets::clip_h, presets::clip_bigg})
    CHECK(clip_text_config_from_json(clip_text_json(c)) == c);

  CHECK(message_of<FileError>([&] { unet_config_from_json(json(R"({"class_embed_type": "timestep"})")); }) ==
        "[config] config.json: does not match any UNet of lpo: class_embed_type is \"timestep\" in the file, null in the "
        "model");
  CHECK(message_of<FileError>([&] { vae_config_from_json(json(R"({"block_out_channels": [1, 1, 1, 1, 1]})")); }) ==
        "[config] config.json: block_out_channels has 5 levels, expected 1 to 4");
  CHECK_THROWS_AS(clip_text_config_from_json(json(R"({"hidden_size": "wide"})")), FileError);
  CHECK_THROWS_AS(unet_config_from_json(json(R"({"layers_per_block": [1, 2, 2, 2]})")), FileError);
}

TEST_CASE("UNets that diffusers cannot build are not written") {
  UNetConfig c = presets::sdxl;
  c.mid_depth = 1;
  CHECK_THROWS_WITH_AS(
      unet_json(c),
      "[unet_json] the middle block is 1 transformers deep, the last level 10; diffusers has one number for both",
      ValueError);
}

TEST_CASE("a scheduler config is read with diffusers' defaults and written back") {
  const auto c = scheduler_from_json(JsonConfig::from_text(sd15_scheduler, "scheduler"));
  CHECK(c.beta_end == 0.012);
  CHECK(c.beta_schedule == BetaSchedule::scaled_linear);
  CHECK(c.steps_offset == 1);
  CHECK_FALSE(c.set_alpha_to_one);
  CHECK_FALSE(c.clip_sample);
  CHECK(c.prediction_type == PredictionType::epsilon);
  const auto plain = scheduler_from_json(JsonConfig::from_text("{}", "scheduler"));  // DDIMScheduler's defaults
  CHECK(plain.beta_start == 0.0001);
  CHECK(plain.beta_schedule == BetaSchedule::linear);
  CHECK(plain.set_alpha_to_one);
  CHECK(plain.clip_sample);

  TemporaryDirectory directory;
  SchedulerConfig changed;
  changed.prediction_type = PredictionType::v_prediction;
  changed.timestep_spacing = TimestepSpacing::trailing;
  changed.rescale_betas_zero_snr = true;
  save_scheduler(directory.file("scheduler"), changed);
  const auto again = load_scheduler(directory.file("scheduler"));
  CHECK(again.prediction_type == PredictionType::v_prediction);
  CHECK(again.timestep_spacing == TimestepSpacing::trailing);
  CHECK(again.rescale_betas_zero_snr);
  CHECK(again.beta_start == changed.beta_start);
  CHECK_THROWS_AS(scheduler_from_json(JsonConfig::from_text(R"({"trained_betas": [0.1]})", "s")), FileError);
}

TEST_CASE("a scheduler config tells its sampler, or is read for another one with that one's defaults") {
  const auto sd15 = JsonConfig::from_text(sd15_scheduler, "scheduler");
  CHECK(scheduler_from_json(sd15).sampler == SamplerKind::pndm);
  CHECK(scheduler_from_json(sd15).timestep_spacing == TimestepSpacing::leading);
  CHECK(scheduler_from_json(sd15).skip_prk_steps);
  CHECK(sd15.unread_keys().empty());
  // As EulerDiscreteScheduler.from_config(PNDMScheduler(...).config) of diffusers 0.35: linspace, its own default.
  const auto euler = scheduler_from_json(sd15, SamplerKind::euler);
  CHECK(euler.sampler == SamplerKind::euler);
  CHECK(euler.timestep_spacing == TimestepSpacing::linspace);
  CHECK(euler.steps_offset == 1);
  CHECK(scheduler_from_json(sd15, SamplerKind::ddim).timestep_spacing == TimestepSpacing::leading);
  const auto nothing = JsonConfig::from_text("{}", "s");
  CHECK_FALSE(scheduler_from_json(nothing, SamplerKind::euler).clip_sample);
  CHECK(scheduler_from_json(nothing, SamplerKind::ddpm).clip_sample);
  const auto unipc = JsonConfig::from_text(R"({"_class_name": "UniPCMultistepScheduler", "beta_start": 0.001})", "s");
  CHECK(scheduler_from_json(unipc).sampler == SamplerKind::ddim);
  CHECK(scheduler_from_json(unipc).beta_start == 0.001);
  CHECK(unknown_scheduler_class(unipc) == "UniPCMultistepScheduler");
  CHECK(unknown_scheduler_class(sd15) == "");
  CHECK(unknown_scheduler_class(nothing) == "");
  CHECK_FALSE(scheduler_from_json(JsonConfig::from_text(R"({"_class_name": "PNDMScheduler"})", "s")).skip_prk_steps);
}

TEST_CASE("schedulers of models of another kind are refused, whatever the sampler") {
  const auto refusal = [](const std::string& text, std::optional<SamplerKind> sampler = std::nullopt) {
    return message_of<FileError>([&] { scheduler_from_json(JsonConfig::from_text(text, "s"), sampler); });
  };
  const std::string flow = R"({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0})";
  CHECK(refusal(flow) ==
        "[config] s: _class_name is FlowMatchEulerDiscreteScheduler, of models of another kind (flow matching); lpo reads "
        "those that denoise along a schedule of betas, such as DDIMScheduler");
  CHECK(has_part(refusal(flow, SamplerKind::ddim), "flow matching"));
  CHECK(has_part(refusal(R"({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true})"), "flow matching"));
  CHECK(has_part(refusal(R"({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"})"),
                 "flow matching"));
  for (const char* name : {"EDMEulerScheduler", "CMStochasticIterativeScheduler", "ScoreSdeVeScheduler", "AmusedScheduler"})
    CHECK(has_part(refusal(R"({"_class_name": ")" + std::string(name) + R"("})"), "of models of another kind"));
  CHECK(refusal(R"({"_class_name": "LCMScheduler"})") == "(nothing was thrown)");
}

TEST_CASE("what diffusers writes for DPM++ is read, other algorithms are refused") {
  const auto config = [](const std::string& changes) {
    return JsonConfig::from_text(R"({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
      "final_sigmas_type": "sigma_min", "lambda_min_clipped": -Infinity, "lower_order_final": false, "solver_order": 2,
      "solver_type": "midpoint", "use_karras_sigmas": true, "use_lu_lambdas": false, "note": "\"-Infinity")" +
                                     changes + "}",
                                 "scheduler");
  };
  const auto file = config("");
  const auto c = scheduler_from_json(file);
  CHECK(c.sampler == SamplerKind::dpmpp_2m);
  CHECK(c.use_karras_sigmas);
  CHECK(c.final_sigmas_type == FinalSigmasType::sigma_min);
  CHECK_FALSE(c.lower_order_final);
  CHECK(c.timestep_spacing == TimestepSpacing::linspace);
  CHECK(file.unread_keys() == std::vector<std::string>{"note"});
  CHECK(file.get<std::string>("note") == "\"-Infinity");
  CHECK(message_of<FileError>([&] { scheduler_from_json(config(R"(, "use_beta_sigmas": true)")); }) ==
        "[config] scheduler: use_beta_sigmas is true, expected false; change it or name another sampler to read the "
        "file for");
  CHECK_THROWS_AS(scheduler_from_json(config(R"(, "thresholding": true)")), FileError);
  const auto clipped =
      JsonConfig::from_text(R"({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1})", "s");
  CHECK_THROWS_AS(scheduler_from_json(clipped), FileError);
  CHECK_NOTHROW(scheduler_from_json(clipped, SamplerKind::ddim));
  const auto sde = JsonConfig::from_text(
      R"({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"})", "s");
  CHECK_THROWS_AS(scheduler_from_json(sde), FileError);
  CHECK(scheduler_from_json(sde, SamplerKind::ddim).sampler == SamplerKind::ddim);
}

TEST_CASE("scheduler configs of all samplers are read as they were written") {
  TemporaryDirectory directory;
  for (const auto& [kind, name, diffusers_class] : detail::sampler_names) {
    SchedulerConfig c;
    c.sampler = kind;
    c.use_karras_sigmas = kind == SamplerKind::euler;
    c.timestep_spacing = TimestepSpacing::trailing;
    save_scheduler(directory.file("scheduler"), c);
    const auto again = load_scheduler(directory.file("scheduler"));
    CHECK(diffusers_class_of(again.sampler) == diffusers_class);
    CHECK(again.use_karras_sigmas == (kind == SamplerKind::euler || kind == SamplerKind::dpmpp_2m_karras));
    CHECK(again.timestep_spacing == TimestepSpacing::trailing);
    CHECK(again.skip_prk_steps);
    CHECK_FALSE(again.clip_sample);
  }
}

TEST_CASE("the model index lists components") {
  TemporaryDirectory directory;
  save_model_index(directory.path());
  const auto index = load_model_index(directory.path());
  CHECK(index.pipeline == "StableDiffusionPipeline");
  CHECK(index.components == ModelIndex::stable_diffusion().components);
  CHECK(has_part(directory.read("model_index.json"), "\"safety_checker\": [\n    null,\n    null\n  ]"));
  save_model_index(directory.path(), ModelIndex::stable_diffusion_xl());
  const auto xl = load_model_index(directory.path());
  CHECK(xl.pipeline == "StableDiffusionXLPipeline");
  CHECK(xl.components.at("text_encoder_2").second == "CLIPTextModelWithProjection");
  CHECK(has_part(directory.read("model_index.json"), "\"force_zeros_for_empty_prompt\": true"));
}

TEST_CASE("a component that was saved is loaded again, unknown keys and all") {
  TemporaryDirectory directory;
  StoredPipeline<golden::sd21, golden::vae, golden::quick_text> pipeline(7);
  auto& [unet, vae, text, store] = pipeline;
  vae->scaling_factor = 0.75f;
  text->end_token = 47;
  ComponentOptions options;
  options.config.set("sample_size", 8);
  options.config.set("note", "kept");
  save_unet(directory.file("unet"), *unet, store, "unet", options);
  save_vae(directory.file("vae"), *vae, store);
  save_text_encoder(directory.file("text_encoder"), *text, store);
  const auto before = pipeline.values();
  pipeline.clear();
  vae->scaling_factor = 0;
  text->end_token = -1;

  const auto report = load_unet(directory.file("unet"), *unet, store);
  CHECK(report.config.unread_keys() == std::vector<std::string>{"note"});
  CHECK(report.config.get<int>("sample_size") == 8);
  CHECK(report.weights.unused.empty());
  load_vae(directory.file("vae"), *vae, store);
  load_text_encoder(directory.file("text_encoder"), *text, store);
  CHECK(pipeline.values() == before);
  CHECK(vae->scaling_factor == 0.75f);
  CHECK(text->end_token == 47);
  CHECK(has_part(directory.read("vae/config.json"), "\"scaling_factor\": 0.75"));

  SUBCASE("a text encoder as transformers 5 saves it") {
    bare_clip_text(directory.file("text_encoder/model.safetensors"));
    pipeline.clear();
    load_unet(directory.file("unet"), *unet, store);
    load_vae(directory.file("vae"), *vae, store);
    CHECK(load_text_encoder(directory.file("text_encoder"), *text, store).weights.unused.empty());
    CHECK(pipeline.values() == before);
  }
  SUBCASE("the encoder half reads a whole UNet and leaves the up blocks") {
    const StoredModel<UNetEncoder<golden::sd21, float, Reference>> half("unet");
    const auto half_report = load_unet(directory.file("unet"), *half, half.store);
    CHECK(half_report.weights.loaded == half.store.entries().size());
    CHECK(half_report.weights.unused.size() ==
          store.entries().size() - half.store.entries().size() -
              static_cast<std::size_t>(std::count_if(store.entries().begin(), store.entries().end(),
                                                     [](const auto& e) { return !e.name.starts_with("unet."); })));
    for (const std::string& key : half_report.weights.unused)
      CHECK((key.starts_with("up_blocks.") || key.starts_with("conv_norm_out.") || key.starts_with("conv_out.")));
  }
  SUBCASE("a variant has its own file name and type") {
    options.variant = "fp16";
    options.dtype = DType::F16;
    save_unet(directory.file("unet16"), *unet, store, "unet", options);
    CHECK(file_exists(directory.file("unet16/diffusion_pytorch_model.fp16.safetensors")));
    CHECK_THROWS_AS(load_unet(directory.file("unet16"), *unet, store), FileError);
    CHECK_NOTHROW(load_unet(directory.file("unet16"), *unet, store, "unet", "fp16"));
  }
  SUBCASE("a component of another shape changes nothing") {
    const StoredModel<UNet2DCondition<golden::sd15, float, Reference>> other("unet");
    const auto error = message_of<FileError>([&] { load_unet(directory.file("unet"), *other, other.store); });
    CHECK(has_part(error, "block_out_channels is [8,16,16,24] in the file, [8,16,16,16] in the model"));
  }
}

TEST_CASE("old names of the autoencoder's attention are understood") {
  CHECK(detail::legacy_vae_name("encoder.mid_block.attentions.0.to_q.weight") ==
        "encoder.mid_block.attentions.0.query.weight");
  CHECK(detail::legacy_vae_name("decoder.mid_block.attentions.0.to_out.0.bias") ==
        "decoder.mid_block.attentions.0.proj_attn.bias");
  CHECK(detail::legacy_vae_name("decoder.conv_in.weight").empty());
}
