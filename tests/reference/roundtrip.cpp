// SPDX-License-Identifier: MIT
// The C++ half of check_roundtrip.py: writes model folders and LoRA files from golden weights, reads what diffusers
// wrote and compares it with them, converts and merges LoRA files.
#include <cstdio>
#include <memory>
#include <string>

#include <lpo/io/diffusers.hpp>
#include <lpo/io/latent_reward_folder.hpp>
#include <lpo/io/lora.hpp>
#include <lpo/io/lora_convert.hpp>

#include "lora/merge_folder.hpp"

#define DOCTEST_CONFIG_IMPLEMENT
#include "model/model_goldens.hpp"

using namespace lpo;

namespace {

/// A model with golden weights.
template <class Model>
struct Golden {
  std::unique_ptr<Model> model = std::make_unique<Model>();
  ParameterStore<float, Reference> store;

  explicit Golden(const std::string& file, const std::string& prefix = "weights/", index_t rank = 0, float alpha = 0) {
    if (rank > 0) enable_lora<float, Reference>(*model, rank, alpha);
    store.add("", *model);
    store.allocate_frozen();
    load_parameters(store, golden::open(file), {.file_prefix = prefix});
  }

  /// Calls `load` after clearing all weights; true if it brought the same ones back.
  template <class Load>
  bool same_after(Load&& load, double tolerance = 0) {
    const std::vector<float> before(store.values().begin(), store.values().end());
    std::fill(store.values().begin(), store.values().end(), 0.0f);
    load();
    return golden::relative_error(store.values().data(), before.data(), static_cast<index_t>(before.size())) <=
           tolerance;
  }
};

template <UNetConfig C>
using Unet = UNet2DCondition<C, float, Reference>;
using Vae = AutoencoderKL<golden::vae, float, Reference>;
template <ClipTextConfig C>
using Text = CLIPTextModel<C, float, Reference>;

void write(const std::string& to) {
  ComponentOptions size;
  size.config.set("sample_size", 16);
  Golden<Unet<golden::sd15>> sd15("unet_sd15");
  Golden<Unet<golden::sd21>> sd21("unet_sd21");
  Golden<Unet<golden::sdxl>> sdxl("unet_sdxl");
  save_unet(to + "/unet", *sd15.model, sd15.store, "", size);
  save_unet(to + "/unet_sd21", *sd21.model, sd21.store, "", size);
  save_unet(to + "/unet_sdxl", *sdxl.model, sdxl.store, "", size);
  ComponentOptions sixteen = size;
  sixteen.dtype = DType::F16;
  sixteen.variant = "fp16";
  save_unet(to + "/unet", *sd15.model, sd15.store, "", sixteen);
  Golden<Vae> vae("vae");
  vae.model->scaling_factor = 0.25f;
  save_vae(to + "/vae", *vae.model, vae.store, "");
  Golden<Text<golden::quick_text>> text("clip_text", "quick/weights/");
  save_text_encoder(to + "/text_encoder", *text.model, text.store, "");
  Golden<Text<golden::gelu_text>> second("clip_text", "gelu/weights/");
  second.model->end_token = 47;
  save_text_encoder(to + "/text_encoder_2", *second.model, second.store, "");
  save_scheduler(to + "/scheduler", SchedulerConfig{});
  save_model_index(to);

  constexpr UNetConfig two_levels{.levels = 2,
                                  .channels = {4, 8},
                                  .layers_per_block = 1,
                                  .transformer_depth = {1, 0},
                                  .heads = {2, 2},
                                  .context_width = 8,
                                  .groups = 2};
  LatentRewardModel<two_levels, 8, 6, true, float, Reference> reward;
  ParameterStore<float, Reference> reward_store;
  reward_store.add("", reward);
  reward_store.allocate_frozen();
  load_latent_reward_model(std::string(LPO_TEST_GOLDEN_DIR) + "/lrm_folder_sd15", reward, reward_store);
  save_latent_reward_model(to + "/lrm", reward, reward_store, {}, "", DType::BF16);

  Golden<Unet<golden::sd15>> adapted("unet_sd15", "weights/", 4, 2.0f);  // golden alpha is 4: scale B by 2 instead
  load_parameters(adapted.store, golden::open("unet_sd15_lora"),
                  {.file_prefix = "weights/unet", .part = ParameterPart::lora});
  for (const auto& entry : adapted.store.entries())
    if (entry.name.find("lora_B") != std::string::npos)
      for (index_t i = 0; i < entry.parameter->size(); ++i) entry.parameter->data()[i] *= 2.0f;
  save_lora(to + "/lora_diffusers.safetensors", *adapted.model, {.format = LoraFormat::diffusers});
  save_lora(to + "/lora_old.safetensors", *adapted.model, {.format = LoraFormat::diffusers_old});
  save_lora(to + "/lora_kohya.safetensors", *adapted.model, {.format = LoraFormat::kohya});

  // One file for UNet and text encoder, ranks 4 and 2, alphas 2 and 3.
  Golden<Text<golden::quick_text>> spoken("clip_text", "quick/weights/", 2, 3.0f);
  RandomStream random(1);
  for (const auto& entry : spoken.store.entries())
    if (is_lora_name(entry.name))
      for (index_t i = 0; i < entry.parameter->size(); ++i) entry.parameter->data()[i] = 0.3f * random.normal();
  for (const LoraFormat format : {LoraFormat::diffusers, LoraFormat::diffusers_old, LoraFormat::kohya}) {
    LoraWriter writer({.format = format});
    add_lora(writer, *adapted.model, "unet");
    add_lora(writer, *spoken.model, "text_encoder");
    writer.write(to + "/both_" + lora_format_name(format) + ".safetensors");
  }
}

/// Converts kohya.safetensors to every form and merges it into the folder base.
void convert(const std::string& folder) {
  const auto base = open_base(folder + "/base");
  const LoraFile lora(folder + "/kohya.safetensors");
  for (const LoraFormat format : {LoraFormat::diffusers, LoraFormat::diffusers_old, LoraFormat::kohya})
    convert_lora(lora, folder + "/to_" + lora_format_name(format) + ".safetensors", {.format = format, .dtype = {}});
  convert_lora(lora, folder + "/to_folded.safetensors", {.dtype = {}, .fold_alpha = true});
  lora_tool::merge_folder(lora, folder + "/base", base, folder + "/merged", {},
                          [](const BaseComponent&) { return WriteCallback{}; });
}

int failures = 0;
void expect(bool good, const char* what) {
  std::printf("  %s  %s\n", good ? "same     " : "DIFFERENT", what);
  failures += good ? 0 : 1;
}

void read(const std::string& from) {
  Golden<Unet<golden::sd15>> sd15("unet_sd15");
  expect(sd15.same_after([&] { load_unet(from + "/unet_sd15", *sd15.model, sd15.store, ""); }), "unet_sd15, in shards");
  expect(sd15.same_after([&] { load_unet(from + "/unet_sd15", *sd15.model, sd15.store, "", "fp16"); }, 1e-3),
         "unet_sd15, fp16 variant");
  Golden<Unet<golden::sd21>> sd21("unet_sd21");
  expect(sd21.same_after([&] { load_unet(from + "/unet_sd21", *sd21.model, sd21.store, ""); }), "unet_sd21");
  Golden<Unet<golden::sdxl>> sdxl("unet_sdxl");
  expect(sdxl.same_after([&] { load_unet(from + "/unet_sdxl", *sdxl.model, sdxl.store, ""); }), "unet_sdxl");
  Golden<Vae> vae("vae");
  expect(vae.same_after([&] { load_vae(from + "/vae", *vae.model, vae.store, ""); }), "vae");
  Golden<Text<golden::quick_text>> text("clip_text", "quick/weights/");
  expect(text.same_after([&] { load_text_encoder(from + "/text_encoder", *text.model, text.store, ""); }),
         "text_encoder");
  Golden<Text<golden::gelu_text>> second("clip_text", "gelu/weights/");
  expect(second.same_after([&] { load_text_encoder(from + "/text_encoder_2", *second.model, second.store, ""); }),
         "text_encoder_2");
  const auto scheduler = load_scheduler(from + "/scheduler");
  expect(scheduler.prediction_type == PredictionType::v_prediction && scheduler.steps_offset == 1, "scheduler");
  Golden<Unet<golden::sd15>> adapted("unet_sd15", "weights/", 4, 4.0f);
  load_parameters(adapted.store, golden::open("unet_sd15_lora"),
                  {.file_prefix = "weights/unet", .part = ParameterPart::lora});
  expect(adapted.same_after([&] {
    load_parameters(adapted.store, golden::open("unet_sd15"), {.file_prefix = "weights/"});
    load_lora(LoraFile(from + "/pytorch_lora_weights.safetensors"), *adapted.model);
  }),
         "LoRA");
}

}  // namespace

int main(int count, char** arguments) {
  const std::string command = count == 3 ? arguments[1] : "";
  if (command != "write" && command != "read" && command != "convert") {
    std::fprintf(stderr, "usage: roundtrip write|read|convert FOLDER\n");
    return 2;
  }
  try {
    if (command == "write") write(arguments[2]);
    if (command == "read") read(arguments[2]);
    if (command == "convert") convert(arguments[2]);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return failures == 0 ? 0 : 1;
}
