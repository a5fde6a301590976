// SPDX-License-Identifier: MIT
// The tiny world's model on disk: a diffusers folder with vae, text_encoder, unet, tokenizer and scheduler.
#pragma once

#include <string>
#include <vector>

#include <lpo/io/diffusers.hpp>
#include <lpo/io/lora.hpp>

#include "tiny_model.hpp"
#include "world/caption.hpp"

namespace tinyworld {

/// A CLIP tokenizer whose merges make every word of the captions one token.
inline lpo::ClipTokenizer make_tokenizer() {
  auto words = caption_words();
  words.push_back(",");
  return lpo::ClipTokenizer::for_words(words, text_config.positions);
}

/// Writes all components as `StableDiffusionPipeline.from_pretrained` reads them, weights as fp16. `vae_store` holds "vae",
/// `store` holds "unet" and "text_encoder".
inline void save_model(const std::string& folder, const Vae& vae, const Store& vae_store, const UNet& unet, const Text& text,
                       const Store& store, const lpo::ClipTokenizer& tokenizer) {
  const auto with_size = [](int size) {
    lpo::ComponentOptions options{.dtype = lpo::DType::F16};
    if (size > 0) options.config.set("sample_size", size);
    return options;
  };
  lpo::save_vae(folder + "/vae", vae, vae_store, "vae", with_size(static_cast<int>(image_size)));
  lpo::save_unet(folder + "/unet", unet, store, "unet", with_size(static_cast<int>(latent_size)));
  lpo::save_text_encoder(folder + "/text_encoder", text, store, "text_encoder", with_size(0));
  tokenizer.save(folder + "/tokenizer");
  lpo::save_scheduler(folder + "/scheduler", scheduler_config());
  lpo::save_model_index(folder);
}

/// The generator: frozen base weights, and a LoRA that is trained (off while its rank is 0).
struct Generator {
  Vae vae;
  Text text;
  UNet unet;
  Store store;
  lpo::ClipTokenizer tokenizer;
  lpo::NoiseSchedule schedule;
  TextEncoder text_encoder;

  /// Reads a folder written by `train_base`. A LoRA of `lora_rank` is added and left to be initialised from `seed`.
  Generator(const std::string& folder, lpo::index_t lora_rank, std::uint64_t seed)
      : tokenizer(lpo::ClipTokenizer::from_directory(folder + "/tokenizer")),
        schedule(lpo::load_scheduler(folder + "/scheduler")),
        text_encoder(text, tokenizer.encode("")) {
    if (lora_rank > 0) lpo::enable_lora<float, Device>(unet, lora_rank, static_cast<float>(lora_rank));
    store.add("vae", vae);
    store.add("text_encoder", text);
    store.add("unet", unet);
    store.allocate(lpo::is_lora_name);
    store.initialize(seed);
    lpo::load_vae(folder + "/vae", vae, store);
    lpo::load_text_encoder(folder + "/text_encoder", text, store);
    lpo::load_unet(folder + "/unet", unet, store);
  }
};

/// The reward model: half the base UNet and its text encoder, all trainable, plus the projections.
struct RewardModel {
  Lrm lrm;
  Text text;
  Store store;
  TextEncoder text_encoder;

  RewardModel(const std::string& folder, const lpo::ClipTokenizer& tokenizer, float guidance, std::uint64_t seed)
      : text_encoder(text, tokenizer.encode("")) {
    lrm.options.guidance = guidance;
    store.add("", lrm);
    store.add("text_encoder", text);
    store.allocate_all_trainable();
    store.initialize(seed);
    lpo::load_unet(folder + "/unet", lrm.unet, store);
    lpo::load_text_encoder(folder + "/text_encoder", text, store);
  }
};

}  // namespace tinyworld
