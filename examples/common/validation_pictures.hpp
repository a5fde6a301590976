// SPDX-License-Identifier: MIT
// Pictures of fixed prompts and seeds while a model trains: what it draws now.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <lpo/io/png.hpp>

#include "drawing.hpp"
#include "policy.hpp"

namespace examples {

/// What is drawn, and where to.
struct ValidationSettings {
  ModelSource model;
  std::vector<std::string> prompts;
  int images = 2;  ///< of each prompt
  int steps = 20;
  double guidance_scale = 5;
  lpo::EmptyPrompt empty = lpo::EmptyPrompt::zeros;  ///< SDXL
  std::uint64_t seed = 42;
  int resolution = 512;
  lpo::SchedulerConfig schedule;
  std::string folder;  ///< pictures are in folders of it
  std::string method;  ///< for the texts in the pictures: "LPO"
  std::string unit;    ///< what training counts: "epoch"
  int digits = 3;      ///< of the count in a folder's name, at least

  bool wanted() const { return !prompts.empty() && images > 0; }
};

/// Draws with DDIM (eta 0), the run's steps and guidance, and torch's noise: the picture that txt2img draws for the
/// same settings and seed. Files are FOLDER/epoch-003/<prompt>-<image>.png.
template <const ModelFamily& F, class T>
class ValidationPictures {
 public:
  struct Picture {
    std::string tag, png;
    int width = 0, height = 0;
  };

  ValidationPictures(lpo::Context<Device>& context, ValidationSettings settings, Policy<F, T>& policy)
      : context_(context),
        settings_(std::move(settings)),
        policy_(policy),
        schedule_(settings_.schedule),
        sampler_(schedule_, lpo::SamplerKind::ddim, settings_.steps, 0.0) {
    if (!wanted()) return;
    vae_store_.add("vae", vae_);
    vae_store_.allocate_frozen();
    settings_.model.load_vae(vae_, vae_store_);
  }

  bool wanted() const { return settings_.wanted(); }

  /// Pictures after `count` units of training. A `resumed` run reads those that it has drawn already, if they are of
  /// these settings. CancelledError on Ctrl-C, without half a set.
  std::vector<Picture> draw(lpo::index_t count, bool resumed) {
    std::vector<Picture> pictures;
    if (!wanted()) return pictures;
    char number[32];
    std::snprintf(number, sizeof number, "-%0*lld", settings_.digits, static_cast<long long>(count));
    const std::string folder = settings_.folder + "/" + settings_.unit + number;
    lpo::make_directories(folder);
    const auto& prompts = settings_.prompts;
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      std::vector<lpo::RgbImage> drawn;
      for (int i = 0; i < settings_.images; ++i) {
        Picture picture;
        const std::string path = lpo::message(folder, "/", p, "-", i, ".png");
        picture.tag = lpo::message("validation/", p, "-", i);
        const std::string text = parameters(prompts[p], i, count);
        if (!resumed || !lpo::file_exists(path) || !has_parameters(path, text)) {
          if (drawn.empty()) drawn = draw_prompt(prompts[p]);
          lpo::write_png(path, drawn[static_cast<std::size_t>(i)], {{"parameters", text}});
        }
        picture.png = lpo::read_text_file(path);
        picture.width = picture.height = settings_.resolution;
        pictures.push_back(std::move(picture));
      }
    }
    return pictures;
  }

 private:
  static bool has_parameters(const std::string& path, const std::string& text) {
    const auto texts = lpo::read_png(path).texts;
    return !texts.empty() && texts[0].keyword == "parameters" && texts[0].text == text;
  }

  std::string parameters(const std::string& prompt, int image, lpo::index_t count) const {
    char guidance[32];
    std::snprintf(guidance, sizeof guidance, "%g", settings_.guidance_scale);
    return lpo::message(prompt, "\nSteps: ", settings_.steps, ", Sampler: DDIM, CFG scale: ", guidance,
                        ", Seed: ", settings_.seed + static_cast<std::uint64_t>(image),
                        ", Size: ", settings_.resolution, "x", settings_.resolution,
                        ", Model: ", settings_.model.name(), ", ", settings_.method, " ", settings_.unit, ": ", count,
                        ", RNG: CPU, Version: lpo ", LPO_VERSION_STRING);
  }

  std::vector<lpo::RgbImage> draw_prompt(const std::string& prompt) {
    lpo::Tape<Device> tape(context_);
    const int side = settings_.resolution / F.vae.factor();
    const std::vector<std::string> prompts(static_cast<std::size_t>(settings_.images), prompt);
    const auto states =
        policy_.text.encode(tape, prompts, "", settings_.empty, settings_.resolution, settings_.resolution);
    lpo::GuidedDenoiser<typename Policy<F, T>::UNet> guided(tape, policy_.unet, settings_.guidance_scale);
    guided.set_prompts(states);
    lpo::Tensor<float, 4, Device> latents(lpo::Extents<4>{settings_.images, side, side, F.unet.in_channels});
    for (int i = 0; i < settings_.images; ++i) {
      PictureNoise noise(settings_.seed + static_cast<std::uint64_t>(i), true);
      noise.initial(context_, latents.view().slice(0, i, i + 1));
    }
    lpo::sample(
        context_, sampler_, guided, latents.view(), [](int, const lpo::View<float, 4, Device>&) {},  // eta 0: no noise
        [](int, int) { return interrupted() == 0; });
    return decode_latents(tape, vae_, latents.view());
  }

  using V = VaeStorage<F, T>;

  lpo::Context<Device>& context_;
  ValidationSettings settings_;
  Policy<F, T>& policy_;
  lpo::NoiseSchedule schedule_;
  lpo::Sampler sampler_;
  lpo::AutoencoderKL<F.vae, V, Device> vae_;
  lpo::ParameterStore<V, Device> vae_store_;
};

}  // namespace examples
