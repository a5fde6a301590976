// SPDX-License-Identifier: MIT
// Pictures of fixed prompts and seeds while a model trains: what it draws now.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <lpo/io/png.hpp>

#include "../common/drawing.hpp"
#include "../common/text_side.hpp"
#include "models.hpp"

namespace train_lpo {

/// Draws with DDIM (eta 0), the run's steps and guidance, and torch's noise: the picture that txt2img draws for the
/// same settings and seed. Files are `output_dir`/validation/epoch-003/<prompt>-<image>.png.
template <const examples::ModelFamily& F, class T>
class Validation {
 public:
  struct Picture {
    std::string tag, png;
    int width = 0, height = 0;
  };

  Validation(lpo::Context<Device>& context, const Job& job, Policy<F, T>& policy)
      : context_(context),
        job_(job),
        policy_(policy),
        schedule_(job.schedule),
        sampler_(schedule_, lpo::SamplerKind::ddim, job.options.num_inference_steps, 0.0) {
    if (!wanted()) return;
    vae_store_.add("vae", vae_);
    vae_store_.allocate_frozen();
    job.model.load_vae(vae_, vae_store_);
  }

  bool wanted() const { return !job_.options.validation_prompts.empty() && job_.options.validation_images > 0; }

  /// Pictures of an epoch; those that are there already are read. CancelledError on Ctrl-C, without half a set.
  std::vector<Picture> draw(index_t epoch) {
    std::vector<Picture> pictures;
    if (!wanted()) return pictures;
    char number[32];
    std::snprintf(number, sizeof number, "/epoch-%03lld", static_cast<long long>(epoch));
    const std::string folder = job_.options.output_dir + "/validation" + number;
    lpo::make_directories(folder);
    const auto& prompts = job_.options.validation_prompts;
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      std::vector<lpo::RgbImage> drawn;
      for (int i = 0; i < job_.options.validation_images; ++i) {
        Picture picture;
        const std::string path = lpo::message(folder, "/", p, "-", i, ".png");
        picture.tag = lpo::message("validation/", p, "-", i);
        if (!lpo::file_exists(path)) {
          if (drawn.empty()) drawn = draw_prompt(prompts[p]);
          lpo::write_png(path, drawn[static_cast<std::size_t>(i)], {{"parameters", parameters(prompts[p], i, epoch)}});
        }
        picture.png = lpo::read_text_file(path);
        picture.width = picture.height = job_.resolution;
        pictures.push_back(std::move(picture));
      }
    }
    return pictures;
  }

 private:
  std::string parameters(const std::string& prompt, int image, index_t epoch) const {
    const Options& o = job_.options;
    char guidance[32];
    std::snprintf(guidance, sizeof guidance, "%g", o.guidance_scale);
    return lpo::message(prompt, "\nSteps: ", o.num_inference_steps, ", Sampler: DDIM, CFG scale: ", guidance,
                        ", Seed: ", o.seed + static_cast<std::uint64_t>(image), ", Size: ", job_.resolution, "x",
                        job_.resolution, ", Model: ", job_.model.name(), ", LPO epoch: ", epoch,
                        ", RNG: CPU, Version: lpo ", LPO_VERSION_STRING);
  }

  std::vector<lpo::RgbImage> draw_prompt(const std::string& prompt) {
    lpo::Tape<Device> tape(context_);
    const Options& o = job_.options;
    const int side = job_.resolution / F.vae.factor();
    const std::vector<std::string> prompts(static_cast<std::size_t>(o.validation_images), prompt);
    const auto empty = o.sdxl_uncond == "zeros" ? lpo::EmptyPrompt::zeros : lpo::EmptyPrompt::encoded;
    const auto states = policy_.text.encode(tape, prompts, "", empty, job_.resolution, job_.resolution);
    lpo::GuidedDenoiser<typename Policy<F, T>::UNet> guided(tape, policy_.unet, o.guidance_scale);
    guided.set_prompts(states);
    lpo::Tensor<float, 4, Device> latents(lpo::Extents<4>{o.validation_images, side, side, F.unet.in_channels});
    for (int i = 0; i < o.validation_images; ++i) {
      examples::PictureNoise noise(o.seed + static_cast<std::uint64_t>(i), true);
      noise.initial(context_, latents.view().slice(0, i, i + 1));
    }
    lpo::sample(
        context_, sampler_, guided, latents.view(), [](int, const lpo::View<float, 4, Device>&) {},  // eta 0: no noise
        [](int, int) { return examples::interrupted() == 0; });
    return examples::decode_latents(tape, vae_, latents.view());
  }

  using V = examples::VaeStorage<F, T>;

  lpo::Context<Device>& context_;
  const Job& job_;
  Policy<F, T>& policy_;
  lpo::NoiseSchedule schedule_;
  lpo::Sampler sampler_;
  lpo::AutoencoderKL<F.vae, V, Device> vae_;
  lpo::ParameterStore<V, Device> vae_store_;
};

}  // namespace train_lpo
